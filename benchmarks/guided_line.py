"""Guided decoupled DMD in two calls on a line: which of floor, normaliser and untold critic makes it collapse?

    python benchmarks/guided_line.py
    python benchmarks/guided_line.py --guidance 2 --seeds 0 --updates 300 --output runs/quick.json

One class N(1, 1/4) within a whole N(0, 5/4), the exact teacher, a rectified flow, a small network. Each arm leaves one
part of the method out. Measured: mean and standard deviation of the samples of each call. Beside them the stationary
point of each call by itself (linear-Gaussian, no weights; the equations of `fixed_point`): where there is none, the
guidance outweighs matching and the samples shrink to a point whatever the rest is.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch
from fewstep.distillation.method import Method, method
from fewstep.distillation.part import replaced
from fewstep.files import write_json
from fewstep.metrics.intervals import seed_interval
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.runs import Run, environment
from fewstep.testing.digits import DigitNetwork, class_condition
from fewstep.testing.fit import fit_network
from fewstep.testing.mixture import Mixture
from fewstep.testing.training import distil

FLOW, VELOCITY = RectifiedFlow(), Prediction("velocity")
MEAN, INNER, OUTER = 1.0, 0.25, 1.25
CALLS = 2
ARMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "critic told": {"told": True},
    "small floor": {"floor": 1e-3},
    "no normaliser": {"weighted": False},
    "no normaliser, critic told": {"weighted": False, "told": True},
    "no guidance": {"guidance": 1.0},
    "no guidance, critic told": {"guidance": 1.0, "told": True},
}


class Line:
    """The class within the whole, as a bed."""

    shape = (1,)

    def teacher(self) -> Denoiser:
        """Exact, of the class at label 0 and of the whole at label 1."""
        laws = [Mixture.gaussian(torch.tensor([m]), torch.tensor([v])) for m, v in ((MEAN, INNER), (0.0, OUTER))]
        within, without = (law.network(FLOW, VELOCITY) for law in laws)

        def network(x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
            return torch.where(class_labels[:, None] == 0, within(x, time), without(x, time))

        return Denoiser(network, FLOW, VELOCITY)

    def start(self) -> nn.Module:
        """A regression of the teacher."""
        return copy.deepcopy(self._start)

    @cached_property
    def _start(self) -> DigitNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = DigitNetwork(32, depth=2, size=1, classes=1)
        teacher, generator = self.teacher(), torch.Generator().manual_seed(0)
        student = Denoiser(network, FLOW, VELOCITY)

        def loss() -> Tensor:
            labels, t = torch.randint(2, (256,), generator=generator), torch.rand(256, generator=generator).double()
            x = 1.5 * torch.randn(256, 1, generator=generator)
            with torch.no_grad():
                wanted = teacher.raw(x, t, class_condition(labels))
            return (student.raw(x, t, class_condition(labels)) - wanted).square().mean()

        fit_network(network, loss, 800, rate=2e-3)
        return network

    def batches(self, size: int) -> Callable[[torch.Generator], Batch]:
        """The class, and the whole as what guidance leads away from."""
        zeros = torch.zeros(size, dtype=torch.long)
        return lambda generator: Batch(size, self.shape, None, class_condition(zeros), class_condition(zeros + 1))


def made(guidance: float, floor: float = 0.1, weighted: bool = True, told: bool = False) -> Method:
    """The method, or without one of its parts."""
    options = {"steps": CALLS, "ratio": 2, "guidance": guidance, "floor": floor, "step_condition": told}
    whole = method("decoupled_dmd", FLOW, **options)
    if weighted:
        return whole
    terms = {name: replaced(term, weights=()) for name, term in whole.terms.items()}
    return dataclasses.replace(whole, terms=terms)


def trained(line: Line, options: dict[str, Any], guidance: float, updates: int, seed: int) -> list[dict[str, float]]:
    """Mean and standard deviation of the samples of every call."""
    chosen = made(**{"guidance": guidance, **options})
    engine, _ = distil(line, chosen, steps=updates, batch=256, seed=seed, learning_rate=1e-3, warmup=0, decay="cosine")
    found, size = [], 4000
    for count in range(1, CALLS + 1):
        generator = torch.Generator().manual_seed(7 + seed)
        with torch.no_grad():
            x = Chain(chosen.steps.times[:count]).sample(
                engine.networks.student,
                torch.randn(size, 1, generator=generator),
                class_condition(torch.zeros(size).long()),
                generator,
            )
        found.append({"mean": float(x.mean()), "std": float(x.std())})
    return found


def fixed_point(guidance: float, highest: float, nodes: int = 400) -> dict[str, float]:
    """Mean and standard deviation at which matching and guidance balance, guidance drawn up to this noise level.

    x ~ N(m, q) moves along -(G - F_c) averaged over levels in [0.02, 0.98] and (guidance - 1) (F_c - F_u) averaged over
    [0.02, highest]; all three denoisers are linear, D(x_t) = m + k (x_t - a m) with k = a v / (a^2 v + s^2).
    """

    def levels(top: float) -> tuple[Tensor, Tensor]:
        s = torch.linspace(0.02, top, nodes, dtype=torch.float64)
        return 1 - s, s

    def slope(v: Tensor | float, a: Tensor, s: Tensor) -> Tensor:
        return a * v / (a**2 * v + s**2)

    (a, s), (near, noise) = levels(0.98), levels(highest)
    pushed = (guidance - 1) * (near * (slope(OUTER, near, noise) - slope(INNER, near, noise))).mean()

    def excess(q: float) -> float:  # of guidance over matching, for the spread
        return float(pushed - (a * (slope(INNER, a, s) - slope(q, a, s))).mean())

    low, high = 0.0, INNER
    if excess(low) > 0:
        spread = 0.0
    else:
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
        spread = low**0.5
    pull = (1 - a * slope(INNER, a, s)).mean()
    within, without = (1 - near * slope(v, near, noise) for v in (INNER, OUTER))
    top = MEAN * (pull + (guidance - 1) * within.mean())
    return {"mean": float(top / (pull + (guidance - 1) * (within - without).mean())), "std": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/guided-line.json"))
    parser.add_argument("--folder", type=Path, default=Path("runs/guided-line"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun, line, rows = time.perf_counter(), Line(), {}
    settings = {"guidance": given.guidance, "updates": given.updates, "seeds": given.seeds}
    with Run(given.folder, settings, quiet=True) as run:
        for k, (name, options) in enumerate(ARMS.items()):
            seeds = [
                run.unit(f"arm-{k}-seed-{s}", lambda o=options, s=s: trained(line, o, given.guidance, given.updates, s))
                for s in given.seeds
            ]
            rows[name] = [
                {
                    key: seed_interval(torch.tensor([seed[c][key] for seed in seeds])).as_dict()
                    for key in ("mean", "std")
                }
                for c in range(CALLS)
            ]
            print(name, [{k: round(v["mean"], 3) for k, v in call.items()} for call in rows[name]], flush=True)
    times = made(given.guidance).steps.times
    points = {f"{g:g}": [fixed_point(g, t) for t in times] for g in (1.0, given.guidance)}
    write_json(given.output, {
        "settings": settings, "class": {"mean": MEAN, "std": INNER**0.5}, "times": list(times), "arms": rows,
        "fixed_points": points, "environment": environment(), "seconds": time.perf_counter() - begun,
    })  # fmt: skip


if __name__ == "__main__":
    main()
