"""AutoDiffusion (arXiv 2309.10438): evolutionary search of times, and of the blocks that every step leaves out.

    python benchmarks/autodiffusion.py --output results/autodiffusion.json

Gaussian data: the best two and three times of DDIM, known from a dense grid over a closed form, must be found. Mixture:
evolution against random search at equal cost, and against a better solver. Digit model: full steps on hand-made times,
searched times, and searched times with blocks left out, at an equal number of executed transformer blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from line import EPSILON, MIXTURE, at, levels, quantiles, rms, run, spread
from testbeds import SEEDS, Testbed, mnist
from torch import Tensor
from usf import END, PROCESS, WORST, OneSolver

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.files import write_json
from fewstep.metrics.distances import frechet
from fewstep.plan import Plan
from fewstep.runs import environment
from fewstep.schedules import Candidate, EvaluationPool, ModelInfo, ScheduleSpace, autodiffusion, random_search
from fewstep.solvers import Decision, grids, unipc
from fewstep.testing.mixture import Mixture
from fewstep.variants import prunable, relative_cost, variants

SEARCHES: dict[str, Callable[..., None]] = {"evolution": autodiffusion, "random": random_search}
FIRST = Decision(order=1)
LINE_BUDGET, LINE_EVALUATIONS = 150, (4, 5, 8)
GAUSSIAN = (1.0, 0.5)
"""Mean and standard deviation."""
MODEL_BUDGET, MODEL_EVALUATIONS, MOST_SKIPPED = 80, (4, 6), 0.4
CALIBRATION, HELD_OUT = 32, 100
FINE = 100


def draw(bed: Testbed, plan: Plan, conditions: Sequence[Any], seeds: Sequence[int]) -> Tensor:
    """`Testbed.draw` for plans whose rows name variants of the network."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(seeds), bed.batch):
            bound = bed.bind(conditions[first : first + bed.batch])
            some = list(seeds[first : first + bed.batch])
            parts.append(sample(plan, variants(plan, bound, bound.network.model), seeds=some, shape=bed.shape))
    return torch.cat(parts)


def found(
    search: Callable[..., None],
    space: ScheduleSpace,
    score: Callable[[Plan], float],
    seed: int,
    budget: int,
    starts: Sequence[Candidate] = (),
) -> Candidate:
    """The schedule with the least error; the search looks at `starts` first."""

    def value(candidate: Candidate) -> float:
        try:
            error = score(candidate.plan(space.model))
        except PlanError:
            return WORST
        return -error if math.isfinite(error) else WORST

    pool = EvaluationPool(value)
    search(space, pool, budget, seed=seed, starts=starts)
    return pool.best()[0].candidate


# --- Gaussian data: the optimum is known ------------------------------------------------------------------------------


def ddim_error(times: Sequence[Tensor]) -> Tensor:
    """Root mean square error of DDIM over standard normal first states, for tensors of times that broadcast.

    Every step is affine in the state, and so is the exact flow: x -> gain x + offset.
    """
    mean, deviation = GAUSSIAN
    gain, offset = torch.ones(()).double(), torch.zeros(()).double()
    ends = [*times[1:], torch.tensor(END).double()]
    for start, end in zip(times, ends, strict=True):
        (a, s), (b, r) = ((PROCESS.alpha(t), PROCESS.sigma(t)) for t in (start, end))
        push = (r - s * b / a) * s / (a**2 * deviation**2 + s**2)
        stretch = b / a + push
        gain, offset = stretch * gain, stretch * offset - push * a * mean
    (a, s), (b, r) = levels(PROCESS, 1.0), levels(PROCESS, END)
    wanted = math.sqrt((b**2 * deviation**2 + r**2) / (a**2 * deviation**2 + s**2))
    return ((gain - wanted) ** 2 + (offset - mean * (b - wanted * a)) ** 2).sqrt()


def best_times(count: int) -> tuple[float, list[float]]:
    """The least error and its times, from a dense grid: all falling combinations."""
    points = {2: 1000, 3: 160}[count]
    ramp = torch.linspace(END * 1.01, 1.0, points, dtype=torch.float64)
    axes = torch.meshgrid(*[ramp] * count, indexing="ij")
    errors = ddim_error(axes)
    falling = torch.stack([early > late for early, late in itertools.pairwise(axes)]).all(0)
    errors = torch.where(falling, errors, torch.inf)
    place = int(errors.argmin())
    return float(errors.flatten()[place]), [float(axis.flatten()[place]) for axis in axes]


def on_gaussian(seeds: int) -> dict[str, Any]:
    """Error of searched times over the least possible, for two and three evaluations."""
    data = Mixture.gaussian([GAUSSIAN[0]], [GAUSSIAN[1] ** 2])
    start = quantiles(2000)
    wanted = data.flow(start, at(-4.0), at(4.0))
    rows = {}
    for count in (2, 3):
        least, times = best_times(count)
        uniform = float(ddim_error([*grids.uniform(PROCESS, count, END).times]))
        space = OneSolver(ModelInfo(PROCESS, EPSILON), count, frozenset({"times"}), last=END, end=END, decision=FIRST)
        rows[str(count)] = {"optimum": least, "optimal_times": times, "uniform": uniform}
        for name, search in SEARCHES.items():
            best = [
                found(search, space, lambda p: rms(run(p, start, data, PROCESS), wanted), seed, LINE_BUDGET)
                for seed in range(seeds)
            ]
            errors = [float(ddim_error([torch.tensor(t).double() for t in c.times])) for c in best]
            rows[str(count)][name] = spread(errors) | {"times": [list(c.times) for c in best]}
    return rows


# --- the mixture ------------------------------------------------------------------------------------------------------


def on_mixture(seeds: int) -> dict[str, Any]:
    """Searched times for DDIM and for a third-order solver; errors on the search's items and on fresh noise."""
    start = quantiles(200)
    wanted = MIXTURE.flow(start, at(-4.0), at(4.0))
    rows: dict[str, Any] = {}
    for count in LINE_EVALUATIONS:
        rows[str(count)] = {}
        for label, decision in (("DDIM", FIRST), ("order 3", Decision(order=3, form="noise"))):
            model = ModelInfo(PROCESS, EPSILON)
            space = OneSolver(model, count, frozenset({"times"}), last=END, end=END, decision=decision)
            usual = min(space.designs(), key=lambda c: rms(run(c.plan(model), start, process=PROCESS), wanted))
            entry = {"usual": {k: spread(v) for k, v in _on_line([usual] * seeds, model).items()}}
            for name, search in SEARCHES.items():
                best = [
                    found(search, space, lambda p: rms(run(p, start, process=PROCESS), wanted), seed, LINE_BUDGET)
                    for seed in range(seeds)
                ]
                entry[name] = {k: spread(v) for k, v in _on_line(best, model).items()}
            rows[str(count)][label] = entry
    return rows


def _on_line(candidates: Sequence[Candidate], model: ModelInfo) -> dict[str, list[float]]:
    """Errors per seed, on the search's quantiles and on fresh noise."""
    errors: dict[str, list[float]] = {"search": [], "fresh": []}
    for seed, candidate in enumerate(candidates):
        fresh = torch.randn(2000, 1, generator=torch.Generator().manual_seed(20_000 + seed), dtype=torch.float64)
        for name, start in (("search", quantiles(200)), ("fresh", fresh)):
            end = run(candidate.plan(model), start, process=PROCESS)
            errors[name].append(rms(end, MIXTURE.flow(start, at(-4.0), at(4.0))))
    return errors


# --- the digit model --------------------------------------------------------------------------------------------------


class Digits:
    """The shipped digit model: results of its fine plan, and the error of any other."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.network = bed.bind([0]).network.model
        self.blocks = len(prunable(self.network))
        fine = unipc(bed.process, bed.prediction, grids.uniform(bed.process, FINE))
        self.known = bed.known(CALIBRATION)
        self.unseen = bed.unseen(HELD_OUT)
        self.target = bed.draw(fine, *self.known)
        self.targets = [bed.draw(fine, *some) for some in self.unseen]
        self.unit = float(torch.cat(self.targets).std())

    def error(self, plan: Plan) -> float:
        """Distance to the fine results on the search's items."""
        return self._distance(draw(self.bed, plan, *self.known), self.target)

    def left_out(self, model: ModelInfo, designs: Sequence[Candidate]) -> tuple[Candidate, dict[str, float]]:
        """The best of these schedules without the blocks that matter least, as many as one step has, and their harm.

        Every block of every row is left out alone; the least harmful go, in that order, within the share per row.
        """
        errors = [self.error(c.plan(model)) for c in designs]
        full, base = designs[errors.index(min(errors))], min(errors)
        none: list[tuple[int, ...]] = [()] * len(full.times)
        harm = {}
        for k, block in itertools.product(range(len(full.times)), range(self.blocks)):
            one = tuple((block,) if row == k else () for row in range(len(none)))
            harm[k, block] = self.error(dataclasses.replace(full, skipped=one).plan(model))
        left = 0
        for k, block in sorted(harm, key=harm.__getitem__):
            if left < self.blocks and len(none[k]) < int(self.blocks * MOST_SKIPPED):
                none[k], left = tuple(sorted((*none[k], block))), left + 1
        ranked = sorted(harm.values())
        summary = {"full": base, "least": ranked[0], "median": ranked[len(ranked) // 2], "most": ranked[-1]}
        return dataclasses.replace(full, skipped=tuple(none)), summary

    def held_out(self, plan: Plan, k: int) -> dict[str, float]:
        """On held-out noise number k: distance, Fréchet distance of features to real digits, executed blocks."""
        drawn = draw(self.bed, plan, *self.unseen[k])
        return {
            "distance": self._distance(drawn, self.targets[k]),
            "frechet": self.quality(drawn),
            "blocks": relative_cost(plan, self.network) * self.blocks,
        }

    def quality(self, drawn: Tensor) -> float:
        with torch.no_grad():
            return frechet(self.bed.features(drawn).double(), self.bed.real.double())

    def _distance(self, a: Tensor, b: Tensor) -> float:
        return float((a - b).flatten(1).square().mean(1).sqrt().mean()) / self.unit


def on_digits(begun: float) -> dict[str, Any]:
    """Hand-made times, searched times, searched times and blocks, at equal executed blocks."""
    digits = Digits(mnist(guidance=1.0))
    bed = digits.bed
    model = ModelInfo(bed.process, bed.prediction, blocks=digits.blocks)
    rows: dict[str, Any] = {}
    for count in MODEL_EVALUATIONS:
        decision = Decision(order=2)
        edges: dict[str, Any] = {"last": 0.01 * bed.process.noisiest, "decision": decision}
        times = OneSolver(model, count, frozenset({"times"}), **edges)
        both = OneSolver(model, count, frozenset({"times", "skips"}), **edges, most_skipped=MOST_SKIPPED)
        designs = times.designs()
        hand = min(designs, key=lambda c: digits.error(c.plan(model)))
        chosen = {"uniform": [designs[0]] * 3, "best usual": [hand] * 3}
        greedy, harm = digits.left_out(model, OneSolver(model, count + 1, frozenset({"times"}), **edges).designs())
        chosen["one step more, blocks by rank"] = [greedy] * 3
        for name, search, space, starts in (
            ("times", autodiffusion, times, []),
            ("times, random", random_search, times, []),
            ("times and blocks", autodiffusion, both, [greedy]),
        ):
            seeds = range(len(SEEDS))
            chosen[name] = [found(search, space, digits.error, seed, MODEL_BUDGET, starts) for seed in seeds]
            print(f"{count} {name}: {time.perf_counter() - begun:.0f} s", flush=True)
        entry = {}
        for name, several in chosen.items():
            values = [digits.held_out(c.plan(model), k) for k, c in enumerate(several)]
            entry[name] = {key: spread([v[key] for v in values]) for key in values[0]}
            entry[name]["calibration"] = [digits.error(c.plan(model)) for c in several]
            entry[name]["schedules"] = [{"times": list(c.times), "skipped": c.skipped} for c in several]
        rows[str(count)] = entry | {"harm": harm}
    return {
        "about": bed.about,
        "blocks": digits.blocks,
        "most_skipped": MOST_SKIPPED,
        "budget": MODEL_BUDGET,
        "items": {"search": CALIBRATION, "held-out per seed": HELD_OUT},
        "teacher_frechet": spread([digits.quality(t) for t in digits.targets]),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/autodiffusion.json")
    options = parser.parse_args()
    begun = time.perf_counter()
    parts: dict[str, Any] = {"gaussian": on_gaussian(len(SEEDS))}
    print(f"gaussian: {time.perf_counter() - begun:.0f} s", flush=True)
    parts["mixture"] = on_mixture(len(SEEDS))
    print(f"mixture: {time.perf_counter() - begun:.0f} s", flush=True)
    parts["digits"] = on_digits(begun)
    result = {"environment": environment(), "line_budget": LINE_BUDGET, "seeds": len(SEEDS), **parts}
    write_json(options.output, result | {"seconds": round(time.perf_counter() - begun, 1)})


if __name__ == "__main__":
    main()
