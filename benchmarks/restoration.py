"""Does a short bridge need fewer steps? Residual shifting, a noise start, regression, interpolation, on photographs.

    python benchmarks/restoration.py --folder runs/restoration
    python benchmarks/restoration.py --updates 20 --seeds 0 --curve 1 --output quick.json

Crops of photographs reduced four times (`photographs.py`). One small network (the same for all, told state, picture
given and noise level) is trained for the same number of updates as residual shifting of 4 and of 15 steps, as a
conditional diffusion from noise, and as a regression; the first three once more with a feature loss, as the paper's
journal version has. On crops of photographs that no training saw: PSNR, SSIM, distance in random features (the loss
has those of another seed), Frechet distance of random features to the true crops (paired, so it may lie far below
that of one half of the true crops against the other), sharpness (energy of differences over that of the truth), and
how far the reduced result is from the picture given. The noise start has the better of two grids, by PSNR. Solvers
run on the 15-step model, and one training for each kappa draws the curve between fidelity and realism. Every training
is a unit: a killed run goes on with the next.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from photographs import FACTOR, JUDGED, LEARNED, SHAPE, SMALLER, Restorer, crops, enlarged, judged
from torch import Tensor

from fewstep.denoiser import Guided
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.distances import frechet, psnr
from fewstep.metrics.features import load_features
from fewstep.metrics.intervals import seed_interval
from fewstep.metrics.paired import perceptual_distance, ssim
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Cosine, Process, ResidualShift
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import anchored, restored

SAMPLE = Prediction("sample")
FOUR, FIFTEEN = ResidualShift(steps=4, least_noise=0.2), ResidualShift(steps=15)
NOISY = Cosine()
STEPS, CALLS = (1, 2, 4, 15), (1, 2, 4)
SOLVED = ("residual_shift", "ddim", "dpm_solver_pp_2m")
KINDS: dict[str, tuple[Process | None, float]] = {
    "regression": (None, 0.0), "from noise": (NOISY, 0.0), "shift 4": (FOUR, 0.0), "shift 15": (FIFTEEN, 0.0),
}  # fmt: skip
FEATURED: dict[str, tuple[Process | None, float]] = {
    "shift 4 + features": (FOUR, 1.0), "from noise + features": (NOISY, 1.0), "regression + features": (None, 1.0),
}  # fmt: skip
"""What is trained: the process (none: regression), and the weight of the feature loss."""
BATCH, LOSS_SEED = 16, 1
Numbers = dict[str, float]


def trained(process: Process | None, features: float, updates: int, seed: int) -> Restorer:
    """A network for the times of a process, which predicts the clean picture."""
    torch.manual_seed(seed)
    network, generator = Restorer(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, updates + 1, pct_start=0.1)
    for _ in range(updates):
        x0 = crops(BATCH, generator)
        given = enlarged(SMALLER.forward(x0))
        found = network(*noisy(process, x0, given, generator), given)
        loss = (found - x0).square().mean()
        if features:
            loss = loss + features * perceptual_distance(pixels(found), pixels(x0), LOSS_SEED).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def noisy(process: Process | None, x0: Tensor, given: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """States, alpha and sigma at random times; a regression sees no state at all."""
    if process is None:
        one = torch.ones(len(x0), 1, 1, 1)
        return torch.zeros_like(x0), 0 * one, one
    bridge = isinstance(process, ResidualShift)
    if bridge:
        t = torch.randint(int(process.noisiest) + 1, (len(x0),), generator=g).double()
    else:
        t = 0.001 + 0.998 * torch.rand(len(x0), generator=g, dtype=torch.float64)
    alpha, sigma = process.scales(t, x0)
    offset = given if bridge else torch.zeros_like(given)
    return offset + alpha * (x0 - offset) + sigma * torch.randn(x0.shape, generator=g), alpha, sigma


def network_of(module: Restorer, process: Process) -> Callable[..., Tensor]:
    def network(x: Tensor, time: Tensor, given: Tensor) -> Tensor:
        alpha, sigma = process.scales(process.from_network_time(time.double()), x)
        return module(x, alpha, sigma, given)

    return network


def shifted(module: Restorer, plan: Plan, process: Process, given: Tensor) -> Tensor:
    network = Guided(network_of(module, process), {"given": given})
    return restored(anchored(plan), network, given, range(len(given)))


def from_noise(module: Restorer, steps: int, given: Tensor, truth: Tensor) -> Tensor:
    """By DDIM on the better of two grids."""
    network = Guided(network_of(module, NOISY), {"given": given})
    found = []
    for grid in (grids.uniform(NOISY, steps), grids.uniform_lambda(NOISY, steps, 0.02, first=0.99)):
        plan = SOLVERS["ddim"](NOISY, SAMPLE, grid)
        found.append(sample(plan, network, seeds=range(len(given)), shape=SHAPE))
    return max(found, key=lambda x: float(psnr(pixels(x), pixels(truth)).mean()))


def times_of(steps: int, process: ResidualShift) -> list[int]:
    """Steps of the training, from the last: as far apart as can be, and the first where there is more than one."""
    return sorted({round(t) for t in torch.linspace(process.noisiest, 0, steps).tolist()}, reverse=True)


def pixels(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def numbers(found: Tensor, truth: Tensor, small: Tensor) -> Numbers:
    features = load_features("random")
    shown, true = pixels(found), pixels(truth)
    return {
        "psnr": float(psnr(shown, true).mean()),
        "ssim": float(ssim(shown, true).mean()),
        "feature_distance": float(perceptual_distance(shown, true).mean()),
        "frechet": frechet(features(shown), features(true)),
        "sharpness": float(shown.diff(dim=-1).square().mean() / true.diff(dim=-1).square().mean()),
        "inconsistency": float((SMALLER.forward(found) - small).square().mean().sqrt()),
    }


@torch.no_grad()
def systems(kind: str, module: Restorer, process: Process | None) -> dict[str, Numbers]:
    """What is made with a trained network, by name: the numbers of each."""
    truth = judged()
    small = SMALLER.forward(truth)
    given, found = enlarged(small), dict[str, Tensor]()
    if process is None:
        one = torch.ones(len(given), 1, 1, 1)
        found[kind] = module(torch.zeros_like(given), 0 * one, one, given)
    elif not isinstance(process, ResidualShift):
        found = {f"{kind}, {steps}": from_noise(module, steps, given, truth) for steps in STEPS}
    else:
        long = process.steps == FIFTEEN.steps
        for name in SOLVED if long else SOLVED[:1]:
            for steps in STEPS if long else CALLS:
                plan = SOLVERS[name](process, SAMPLE, grids.given(times_of(steps, process)))
                label = kind if name == "residual_shift" else f"{kind}, {name}"
                found[f"{label}, {steps}"] = shifted(module, plan, process, given)
    return {name: numbers(x, truth, small) for name, x in found.items()}


def references() -> dict[str, Numbers]:
    """Interpolation, and one half of the true crops against the other."""
    truth, features = judged(), load_features("random")
    small, half = SMALLER.forward(truth), len(truth) // 2
    null = frechet(features(pixels(truth[:half])), features(pixels(truth[half:])))
    return {"bicubic": numbers(enlarged(small), truth, small), "halves": {"frechet": null}}


def measured(kind: str, process: Process | None, features: float, updates: int, seed: int) -> dict[str, Numbers]:
    return systems(kind, trained(process, features, updates, seed), process)


def over_seeds(each: list[dict[str, Numbers]]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % interval of every number of every system."""
    found: dict[str, dict[str, Any]] = {}
    for name, first in each[0].items():
        found[name] = {}
        for key in first:
            values = [one[name][key] for one in each]
            entry: dict[str, Any] = {"values": values, "mean": sum(values) / len(values)}
            if len(values) > 1:
                interval = seed_interval(torch.tensor(values))
                entry |= {"low": interval.low, "high": interval.high}
            found[name][key] = entry
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--featured", type=int, nargs="+", default=[0], help="seeds of those with a feature loss")
    parser.add_argument("--curve", type=float, nargs="+", default=[0.5, 8.0], help="kappas beside 2")
    parser.add_argument("--output", type=Path, default=Path("results/restoration.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    given = parser.parse_args()
    settings = {"updates": given.updates, "batch": BATCH, "factor": FACTOR, "learned": LEARNED, "judged": JUDGED}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "restoration", settings, quiet=True)

    def unit(kind: str, process: Process | None, features: float, seed: int) -> dict[str, Numbers]:
        name = f"{kind}/{seed}".replace(" ", "-").replace("+", "and")
        found = run.unit(name, lambda: measured(kind, process, features, given.updates, seed))
        print(name, {k: {n: round(v, 4) for n, v in row.items()} for k, row in found.items()}, flush=True)
        return found

    def over(kinds: dict[str, tuple[Process | None, float]], seeds: list[int]) -> dict[str, dict[str, Any]]:
        each = [{k: v for kind, how in kinds.items() for k, v in unit(kind, *how, seed).items()} for seed in seeds]
        return over_seeds(each)

    found = over(KINDS, given.seeds)
    curve = {}
    for kappa in sorted({*given.curve, FOUR.kappa}):
        kind = "shift 4" if kappa == FOUR.kappa else f"kappa {kappa:g}"
        curve[f"{kappa:g}"] = unit(kind, replace(FOUR, kappa=kappa), 0.0, given.seeds[0])[f"{kind}, 4"]
    featured = over(FEATURED, given.featured)
    document = {
        "settings": {**settings, "seeds": given.seeds, "featured": given.featured, "crops": len(judged())},
        "parameters": sum(p.numel() for p in Restorer().parameters()),
        "references": references(), "systems": {**found, **featured}, "kappa": curve,
        "seconds": sum(run.seconds().values()), "environment": environment(),
    }  # fmt: skip
    write_json(given.output, document)


if __name__ == "__main__":
    main()
