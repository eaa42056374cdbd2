"""Every distillation method on one mixture with its exact teacher: 1, 2 and 4 steps, equal budgets of network passes.

    python benchmarks/distillation_toy.py
    python benchmarks/distillation_toy.py --methods lcm dmd2 --steps 1 --seeds 0 --output quick.json

Eight Gaussians on a circle, a rectified flow, a student of 20,000 weights that begins as a regression of the teacher.
Every method gets the same budget (a sample forward through any network counts one, backward two more) and the same
tuning: learning rate and momentum from the same grid, by a seed that is not reported. Quality: energy distance from
fresh data (times 1000), and the smallest share that a mode gets of its eighth. Beside them: the teacher in as many
Euler steps, the untrained student, and data against data.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distillation.chain import evenly
from fewstep.distillation.discriminator import samples
from fewstep.distillation.method import Method, method, options_of, presets, stages_over
from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.jobs.distill.cost import passes_of
from fewstep.metrics.intervals import seed_interval
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.testing.toy import Toy
from fewstep.testing.training import assembled_engine, train_toy

RATES, MOMENTA, TUNING_SEED = (5e-4, 2e-3), (0.0, 0.9), 1000
FLOOR, TAPS = {"floor": 0.1}, {"modules": ("rest.2",)}
# What the papers' values cannot mean for points in the plane: features of a small network rather than of images,
# normalisers whose floors are meant for thousands of numbers, stages as shares of the run.
OPTIONS: dict[str, dict[str, Any]] = {
    "dmd": FLOOR, "dmd2": {**FLOOR, **TAPS}, "f_distill": {**FLOOR, **TAPS}, "sid": FLOOR,
    "sid_few_step": FLOOR,
    "flash_dmd": {**FLOOR, "source": samples, "pull": 0.003, "adversarial": 1.0},
    "ladd": {"source": samples, "penalty": 1.0}, "mmd_ddm": {"kernel": "radial"}, "ctm": {"anchor": 0.02, "decay": 0.9},
    "ect": {"c": 1.0, "stages": 3}, "mdt": {"sample_guidance": 1.0}, "mlcm": {"first_stage": 0.4},
    "mean_flow": {"teacher": True}, "alpha_flow": {"teacher": True}, "accvideo": {"adversarial": 0.0},
    "shortcut": {"decay": 0.9},
}  # fmt: skip
LEFT_OUT = {
    "yonos": "its teacher sees an easier condition; the mixture has none",
    "osediff": "it starts from a degraded picture",
}


class Exact(nn.Module):
    """A teacher without weights as a module, so that its calls can be counted."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(x, time)


def made(name: str, toy: Toy, steps: int, updates: int) -> Method:
    """The preset with the toy's options, its stages laid over the run."""
    known, options = options_of(name), dict(OPTIONS.get(name, {}))
    if "guidance" in known:
        options["guidance"] = 1.0
    if "steps" in known:
        options["steps"] = steps
    return method(name, toy.process, **options, **stages_over(name, updates, **options))


def entries(names: list[str], steps: list[int]) -> Iterator[tuple[str, int]]:
    """What can be compared: methods of one step enter there alone."""
    for name, count in itertools.product(names, steps):
        if count == 1 or "steps" in options_of(name):
            yield name, count


def passes(toy: Toy, chosen: Method, batch: int, steps: int = 4) -> float:
    """Sample passes per update of the student, by counting."""
    engine = assembled_engine(toy, chosen, batch)
    teacher = Exact(engine.networks.teacher.network)
    networks = dataclasses.replace(
        engine.networks, teacher=dataclasses.replace(engine.networks.teacher, network=teacher)
    )
    return passes_of(dataclasses.replace(engine, networks=networks), teacher, steps)


def trained(
    toy: Toy, name: str, steps: int, updates: int, batch: int, seed: int, setting: list[float]
) -> dict[str, Any]:
    """One training and what came out; a divergence is a result."""
    rate, momentum = setting
    chosen = made(name, toy, steps, updates)
    chosen = dataclasses.replace(chosen, settings=dataclasses.replace(chosen.settings, betas=(momentum, 0.99)))
    began = time.perf_counter()
    try:
        found = train_toy(toy, chosen, steps=updates, batch=batch, seed=seed, learning_rate=rate, warmup=0)
    except FewstepError as error:
        return {"failed": str(error).splitlines()[0], "distance": None, "rarest": 0.0}
    distance = found.distance if math.isfinite(found.distance) else None
    return {"distance": distance, "rarest": rarest(found.samples), "seconds": time.perf_counter() - began}


def rarest(points: Tensor) -> float:
    """The least populated mode's share of an eighth; 0 where one was lost."""
    angle = torch.atan2(points[:, 1], points[:, 0])
    modes = torch.bincount((angle / (torch.pi / 4)).round().long() % 8, minlength=8)
    return float(modes.min()) * 8 / len(points)


def compared(toy: Toy, run: Run, name: str, steps: int, given: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    per_update = passes(toy, made(name, toy, steps, 4), given.batch)
    updates = max(4, int(given.budget / per_update))
    grid = [[rate, momentum] for rate in RATES for momentum in MOMENTA]
    tried = [
        run.unit(
            f"{name}-{steps}-tune-{k}", partial(trained, toy, name, steps, updates // 2, given.batch, TUNING_SEED, s)
        )
        for k, s in enumerate(grid)
    ]
    best = min(range(len(grid)), key=lambda k: math.inf if tried[k]["distance"] is None else tried[k]["distance"])
    rows = [
        run.unit(f"{name}-{steps}-seed-{s}", partial(trained, toy, name, steps, updates, given.batch, s, grid[best]))
        for s in given.seeds
    ]
    good = [row["distance"] for row in rows if row["distance"] is not None]
    whole = len(good) == len(rows) and len(good) > 1
    return {
        "method": name, "steps": steps, "updates": updates, "passes_per_update": per_update / given.batch,
        "learning_rate": grid[best][0], "momentum": grid[best][1], "seeds": rows,
        "distance": seed_interval(torch.tensor(good, dtype=torch.float64)).as_dict() if whole else None,
        "rarest": min(row["rarest"] for row in rows),
    }  # fmt: skip


def kept(file: Path, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Lines of other methods than these, each with the commit that it was measured at."""
    found = read_json(file)
    commit = found["environment"]["commit"]
    return [{"commit": commit, **row} for row in found["rows"] if row["method"] not in methods]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[n for n in presets() if n not in LEFT_OUT])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--budget", type=int, default=600_000, help="sample passes of one training")
    parser.add_argument("--output", type=Path, default=Path("results/distillation-toy.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation-toy"))
    parser.add_argument("--keep", type=Path, help="earlier results: lines of the methods that are not named now")
    given = parser.parse_args()
    begun, toy = time.perf_counter(), Toy().stored()
    settings = {"batch": given.batch, "budget": given.budget, "seeds": given.seeds}
    rows = [] if given.keep is None else kept(given.keep, given.methods)
    with Run(given.folder, settings, quiet=True) as run:
        for name, steps in entries(given.methods, given.steps):
            rows.append(compared(toy, run, name, steps, given) | {"commit": environment()["commit"]})
            row = rows[-1]
            said = "failed" if row["distance"] is None else f"{row['distance']['mean']:.1f}, rarest {row['rarest']:.2f}"
            print(f"{time.perf_counter() - begun:6.0f} s  {name}, {steps} steps: {said}", flush=True)
    rows.sort(key=lambda row: (row["method"], row["steps"]))
    references = {}
    for steps in given.steps:
        chain = evenly(toy.process, steps, fresh=0.0)
        noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            for label, model in (("teacher", toy.teacher()), ("untrained", toy.model(toy.start()))):
                drawn = chain.sample(model, noise, None, torch.Generator())
                references[f"{label}, {steps}"] = {"distance": toy.distance(drawn), "rarest": rarest(drawn)}
    fresh = toy.mixture.sample(2000, 5).float()
    references["data"] = {"distance": toy.distance(fresh), "rarest": rarest(fresh)}
    write_json(given.output, {
        "settings": settings | {"rates": RATES, "momenta": MOMENTA},
        "options": json.loads(json.dumps(OPTIONS, default=lambda value: value.__name__)),
        "store_passes": 4096 * 64, "left_out": LEFT_OUT, "rows": rows, "references": references,
        "environment": environment(), "seconds": time.perf_counter() - begun,
    })  # fmt: skip


if __name__ == "__main__":
    main()
