"""How many updates does a teacher of an easier scale save? Scale distillation x2 -> x4 -> x8 on photographs.

    python benchmarks/yonos_sr.py --folder runs/yonos-sr
    python benchmarks/yonos_sr.py --updates 20 --seeds 0 --output quick.json

The network and crops of `photographs.py`, in pixels: a conditional diffusion from noise (cosine process, clean
prediction, times uniform, unweighted) of pictures whose squares of 2, 4 or 8 pixels are known by their mean. The x2
model learns from the data. The x4 student begins with its weights and learns from the data (direct) or from what the x2
model says at the same noisy state (distilled), batches and noise being equal; then x8 the same from the distilled x4
model. The error of one DDIM step on crops that no training saw is noted along the way, with that of 4 steps at the end.
Last, the x4 student is frozen and a small decoder behind it is trained by L1 and a feature loss (of another seed than
judges). A decoder of pixels stands in for the paper's, which decodes latents.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from photographs import SHAPE, Restorer, crops, judged
from restoration import over_seeds
from torch import Tensor, nn

from fewstep.denoiser import Denoiser, Guided
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.method import method
from fewstep.distillation.part import replaced
from fewstep.distillation.parts import data_velocity, instantaneous_velocity
from fewstep.executor import sample
from fewstep.files import read_json, read_tensors, write_json, write_tensors
from fewstep.metrics.distances import psnr
from fewstep.metrics.paired import perceptual_distance, ssim
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import decoder_loss, scale_conditions

PROCESS, SAMPLE, START = Cosine(), Prediction("sample"), 0.99
FROM_TEACHER = replaced(method("yonos", PROCESS).terms["easier"], weights=())
FROM_DATA = replaced(FROM_TEACHER, target=instantaneous_velocity(data_velocity))
BATCH, POINTS = 16, 10
STAGES: dict[str, tuple[str, str | None, int, int]] = {
    "x2": ("start", None, 1, 2),
    "x4 direct": ("x2", None, 2, 4),
    "x4 distilled": ("x2", "x2", 2, 4),
    "x8 direct": ("x4 distilled", None, 4, 8),
    "x8 distilled": ("x4 distilled", "x4 distilled", 4, 8),
}
"""Whose weights it begins with, its teacher (none: the data), and the two factors."""


def denoiser(module: Restorer) -> Denoiser:
    def network(x: Tensor, time: Tensor, given: Tensor) -> Tensor:
        alpha, sigma = PROCESS.scales(PROCESS.from_network_time(time.double()), x)
        return module(x, alpha, sigma, given)

    return Denoiser(network, PROCESS, SAMPLE)


@torch.no_grad()
def made(module: Restorer, factor: int, steps: int, truth: Tensor) -> Tensor:
    given = scale_conditions(truth, 1, factor)["given"]
    times = torch.linspace(START, START / steps, steps).tolist()
    plan = SOLVERS["ddim"](PROCESS, SAMPLE, grids.given(times))
    return sample(plan, Guided(denoiser(module).network, {"given": given}), seeds=range(len(truth)), shape=SHAPE)


def shown(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


def numbers(found: Tensor, truth: Tensor) -> dict[str, float]:
    x, y = shown(found), shown(truth)
    return {
        "psnr": float(psnr(x, y).mean()),
        "ssim": float(ssim(x, y).mean()),
        "feature_distance": float(perceptual_distance(x, y).mean()),
    }


def trained(start: Restorer, teacher: Restorer | None, easier: int, harder: int, updates: int, seed: int) -> Any:
    """The student, and the PSNR of its one step along the training."""
    student, g, curve = copy.deepcopy(start).train(), torch.Generator().manual_seed(seed), {}
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, updates + 1, pct_start=0.1)
    term = FROM_DATA if teacher is None else FROM_TEACHER
    networks = Networks(denoiser(student), denoiser(teacher or student))
    for step in range(updates + 1):
        if step % max(1, updates // POINTS) == 0:
            curve[str(step)] = numbers(made(student, harder, 1, judged()), judged())["psnr"]
        x = crops(BATCH, g)
        batch = Batch(BATCH, SHAPE, clean=x, condition=scale_conditions(x, easier, harder))
        loss, _ = term(networks, batch, None, torch.Generator().manual_seed(seed * 100_003 + step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return student.eval(), curve


def stage(run: Run, name: str, *how: Any) -> tuple[Restorer, dict[str, float]]:
    """A training as a unit: weights and curve are kept."""

    def save(done: tuple[Restorer, dict[str, float]], draft: Path) -> None:
        draft.mkdir()
        write_tensors(draft / "weights.safetensors", dict(done[0].state_dict()))
        write_json(draft / "curve.json", done[1])

    def load(place: Path) -> tuple[Restorer, dict[str, float]]:
        module = Restorer()
        module.load_state_dict(read_tensors(place / "weights.safetensors"))
        return module.eval(), read_json(place / "curve.json")

    return run.unit(name.replace(" ", "-"), partial(trained, *how), save=save, load=load)


class Decoder(nn.Module):
    """Adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 3, 3, padding=1))
        nn.init.zeros_(self.layers[2].weight)
        nn.init.zeros_(self.layers[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def decoded(module: Restorer, factor: int, updates: int, seed: int) -> dict[str, dict[str, float]]:
    """Numbers before and after the decoder's training."""
    torch.manual_seed(seed)
    decoder, g = Decoder(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return perceptual_distance(shown(a), shown(b), seed=1)

    for _ in range(updates):
        x = crops(BATCH, g)
        loss = decoder_loss(decoder, made(module, factor, 1, x), x, distance)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        end = made(module, factor, 1, judged())
        return {"frozen alone": numbers(end, judged()), "with its decoder": numbers(decoder(end), judged())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--decoder", type=int, default=150, help="updates of the decoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("results/yonos-sr.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is done; a temporary one unless given")
    given = parser.parse_args()
    settings = {"updates": given.updates, "decoder": given.decoder, "batch": BATCH}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "yonos-sr", settings, quiet=True)
    each, curves = [], dict[str, dict[str, float]]()
    for seed in given.seeds:
        torch.manual_seed(seed)
        modules: dict[str, Restorer] = {"start": Restorer()}
        found: dict[str, dict[str, float]] = {}
        for name, (start, teacher, easier, harder) in STAGES.items():
            begin = modules[start], modules.get(teacher or "")
            modules[name], curve = stage(run, f"{name}/{seed}", *begin, easier, harder, given.updates, seed)
            curves[f"{name}, seed {seed}"] = curve
            for steps in (1, 4):
                found[f"{name}, {steps}"] = numbers(made(modules[name], harder, steps, judged()), judged())
            print(name, seed, {k: round(v, 3) for k, v in curve.items()}, flush=True)
        module = modules["x4 distilled"]
        found |= run.unit(f"decoder/{seed}", partial(decoded, module, 4, given.decoder, seed))
        each.append(found)
    document = {"settings": {**settings, "seeds": given.seeds}, "systems": over_seeds(each), "curves": curves}
    write_json(given.output, {**document, "seconds": sum(run.seconds().values()), "environment": environment()})


if __name__ == "__main__":
    main()
