"""Grids that stop above zero noise (arXiv 2510.02390): does a noise-tolerant decoder make up for the rest?

    python benchmarks/five_step.py --output results/five-step.json

Emoji teacher with its own autoencoder (trained with a KL term): the sampler stops at sigma/alpha = 0 to 0.3 and the
state is decoded as it is, divided by its alpha. Control: 8x8 digits in pixels with an exact denoiser, where nothing
decodes noise away. Then the grid itself: equal steps in time^(1/1.2) against the usual ones, that stop at the same
noise or go on to zero; and FreeU in the last rows. Distances are to the teacher's pictures of the same noise and
caption.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from autodiffusion import draw
from line import spread
from solvers import usual_grids
from testbeds import SEEDS, Testbed, digits, emoji
from torch import Tensor

from fewstep.files import write_json
from fewstep.metrics import load_features
from fewstep.metrics.distances import RbfKernel, frechet, mmd2
from fewstep.pipelines import load_pipeline
from fewstep.plan import Plan
from fewstep.runs import environment
from fewstep.solvers import Grid, ddim, dpm_solver_pp_2m, grids, unipc
from fewstep.zoo import shipped

STOPS = (0.0, 0.03, 0.06, 0.13, 0.3)
PAPER = 0.13
EVALUATIONS = (5, 8)
FINE = 60
ITEMS = {"emoji": 40, "digits": 325}
FREEU = "freeu:1.1,1.1,0.9,0.2"
Build = Callable[[int, float], Grid]


def stop_time(bed: Testbed, stop: float) -> float:
    """The time at which sigma/alpha is `stop`."""
    return float(bed.process.time(-torch.tensor(stop, dtype=torch.float64).log()))


def power_grid(bed: Testbed, steps: int, stop: float, power: float = 1.2) -> Grid:
    """Equal steps in time^(1/power), the last of them ending at `stop`, or clean."""
    last = stop_time(bed, stop) if stop else 0.0
    times = grids.polynomial(bed.process, steps + 1, last, power=power).times
    return Grid(times[:-1], float(times[-1]) if stop else None)


def stopping(times: Tensor, bed: Testbed, stop: float) -> Grid:
    """These times as network calls, and the stop as the end; calls at or below it are left out."""
    end = stop_time(bed, stop)
    return Grid(times[times > end], end)


def other_grids(bed: Testbed) -> dict[str, Build]:
    """Grids of the same number of calls that stop at the same noise."""
    process: Any = bed.process
    return {
        "time^(1/1.2)": lambda n, stop: power_grid(bed, n, stop),
        "linspace": lambda n, stop: power_grid(bed, n, stop, 1.0),
        "trailing": lambda n, stop: stopping(grids.trailing(process, n).times, bed, stop),
        "Karras": lambda n, stop: stopping(grids.karras(process, n + 1, stop_time(bed, stop)).times[:-1], bed, stop),
        "AYS": lambda n, stop: stopping(
            grids.align_your_steps(process, "StableDiffusion", n + 1).times[:-1], bed, stop
        ),
        "log-SNR": lambda n, stop: stopping(
            grids.uniform_lambda(process, n + 1, stop_time(bed, stop)).times[:-1], bed, stop
        ),
    }


def second_order(bed: Testbed, grid: Grid, lower: bool = False) -> Plan:
    """DPM-Solver++(2M) as published: first order in the last row only where it must be, or where `lower` says so."""
    return dpm_solver_pp_2m(bed.process, bed.prediction, grid, lower_order_final=lower or grid.end is None)


class Judge:
    """Decodes final states, and compares the pictures of a plan with the teacher's and with real ones."""

    def __init__(
        self, bed: Testbed, decode: Callable[[Tensor], Tensor], features: Callable[[Tensor], Tensor], count: int
    ) -> None:
        self.bed, self.decode, self.features = bed, decode, features
        self.items = bed.unseen(count)
        self.kernel = RbfKernel.of(bed.real)
        fine = unipc(bed.process, bed.prediction, grids.uniform(bed.process, FINE))
        self.latents = [bed.draw(fine, *some) for some in self.items]
        self.teacher = [self.pictures(latent) for latent in self.latents]
        self.unit = float(torch.cat(self.teacher).std())

    @torch.no_grad()
    def pictures(self, states: Tensor) -> Tensor:
        return torch.cat([self.decode(part) for part in states.split(64)])

    def measure(self, plan: Plan) -> dict[str, Any]:
        """Distance to the teacher's pictures, Fréchet distance and MMD to real ones; spread over seeds."""
        drawn = [self.pictures(self._drawn(plan, some) / float(plan.final_alpha)) for some in self.items]
        away = [
            float((d - t).flatten(1).square().mean(1).sqrt().mean()) / self.unit
            for d, t in zip(drawn, self.teacher, strict=True)
        ]
        return {"distance": spread(away)} | self.quality(drawn)

    @torch.no_grad()
    def quality(self, drawn: Sequence[Tensor]) -> dict[str, Any]:
        seen = [self.features(d).double() for d in drawn]
        real = self.bed.real.double()
        return {
            "frechet": spread([frechet(s, real) for s in seen]),
            "mmd": spread([mmd2(s, real, self.kernel) for s in seen]),
        }

    def _drawn(self, plan: Plan, some: tuple[list[Any], list[int]]) -> Tensor:
        named = any(row.network != "main" for row in plan.rows)
        return draw(self.bed, plan, *some) if named else self.bed.draw(plan, *some)

    def tolerance(self) -> dict[str, float]:
        """How much of the noise of a state is left in the picture, both over the standard deviation of their kind."""
        scale = float(torch.cat(self.latents).std())
        found = {}
        for stop in STOPS[1:]:
            noise = torch.randn(self.latents[0].shape, generator=torch.Generator().manual_seed(1))
            moved = self.pictures(self.latents[0] + stop * noise) - self.teacher[0]
            found[f"{stop:g}"] = float(moved.square().mean().sqrt()) / self.unit / (stop / scale)
        return found


def emoji_judge(bed: Testbed, count: int) -> Judge:
    pipe = load_pipeline("emoji-teacher")
    net = load_features(f"clip:{shipped('emoji-judge')}")

    def decode(states: Tensor) -> Tensor:
        return (pipe.vae.decode(states / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    return Judge(bed, decode, net, count)


def stops(judge: Judge) -> dict[str, Any]:
    """Every stop at every number of evaluations, with the paper's solver for it and with one that never changes."""
    bed = judge.bed
    published: dict[int, tuple[str, Callable[[Grid], Plan]]] = {
        5: ("DDIM", lambda grid: ddim(bed.process, bed.prediction, grid)),
        8: ("2M", lambda grid: second_order(bed, grid)),
    }
    rows: dict[str, Any] = {}
    for count in EVALUATIONS:
        same = ("2M, last row first order", lambda grid: second_order(bed, grid, lower=True))
        rows[str(count)] = {
            name: {f"{stop:g}": judge.measure(solver(power_grid(bed, count, stop))) for stop in STOPS}
            for name, solver in (published[count], same)
        }
    return rows


def to_zero(judge: Judge) -> dict[str, Any]:
    """The usual grids that end clean, at the same numbers of evaluations: what stopping has to beat."""
    builds = usual_grids(judge.bed)
    return {
        str(count): {name: judge.measure(second_order(judge.bed, build(count))) for name, build in builds.items()}
        for count in EVALUATIONS
    }


def grids_and_freeu(judge: Judge) -> tuple[dict[str, Any], dict[str, Any]]:
    """Other grids to the paper's stop, and FreeU in no, the last and all rows of the paper's own grid."""
    at_stop: dict[str, Any] = {}
    freeu: dict[str, Any] = {}
    for count in EVALUATIONS:
        plans = {name: second_order(judge.bed, build(count, PAPER)) for name, build in other_grids(judge.bed).items()}
        at_stop[str(count)] = {
            name: judge.measure(plan) | {"evaluations": plan.steps, "times": [float(r.time) for r in plan.rows]}
            for name, plan in plans.items()
        }
        base = plans["time^(1/1.2)"]
        freeu[str(count)] = {
            "no rows": {k: at_stop[str(count)]["time^(1/1.2)"][k] for k in ("distance", "mmd", "frechet")}
        }
        for name, first in (("last row", count - 1), ("second half", count // 2), ("all rows", 0)):
            rows = [dataclasses.replace(r, network=FREEU) if k >= first else r for k, r in enumerate(base.rows)]
            freeu[str(count)][name] = judge.measure(base.replace(rows=tuple(rows)))
    return at_stop, freeu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/five-step.json")
    options = parser.parse_args()
    begun = time.perf_counter()
    pixels = Judge(digits(), lambda states: states, lambda pictures: pictures.flatten(1), ITEMS["digits"])
    found: dict[str, Any] = {
        "digits": {"stops": stops(pixels), "to_zero": to_zero(pixels), "tolerance": pixels.tolerance()}
    }
    print(f"digits: {time.perf_counter() - begun:.0f} s", flush=True)
    judge = emoji_judge(emoji(), ITEMS["emoji"])
    found["emoji"] = {"teacher": judge.quality(judge.teacher), "tolerance": judge.tolerance(), "stops": stops(judge)}
    found["emoji"]["to_zero"] = to_zero(judge)
    print(f"emoji stops: {time.perf_counter() - begun:.0f} s", flush=True)
    found["grids"], found["freeu"] = grids_and_freeu(judge)
    settings = {"items": ITEMS, "seeds": list(SEEDS), "fine_steps": FINE, "freeu_numbers": FREEU, "paper_stop": PAPER}
    result = {"environment": environment(), **settings, **found}
    write_json(options.output, result | {"seconds": round(time.perf_counter() - begun, 1)})


if __name__ == "__main__":
    main()
