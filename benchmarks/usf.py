"""USF and S3 (arXiv 2312.07243): what searching a strategy for every step adds to searching times, and what S3 adds.

    python benchmarks/usf.py --output results/usf.json

One-dimensional mixture with a perfect network, half log-SNR from -4 to 4. A search minimises the root mean square error
of 200 normal quantiles to their exact images; what it found is measured on fresh noise, and on a mixture it has not
seen (shifted means, other weights). Every search spends the same number of evaluated schedules.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from line import EPSILON, MIXTURE, at, quantiles, rms, run, spread, statistics
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.files import write_json
from fewstep.plan import Plan
from fewstep.process import VPContinuous
from fewstep.runs import environment
from fewstep.schedules import Candidate, EvaluationPool, ModelInfo, ScheduleSpace, random_search, s3
from fewstep.solvers import Decision, grids, unipc
from fewstep.testing.mixture import Mixture

EVALUATIONS = (4, 5, 8)
LOAD = 4 * (0.5 * math.log1p(math.exp(8)) - 0.25 * 0.2)
PROCESS = VPContinuous(beta_min=0.1, beta_max=0.1 + LOAD)
"""The linear schedule whose noisiest half log-SNR is -4."""
END = float(PROCESS.time(4.0))
SHIFTED = Mixture.line([0.5, 0.3, 0.2], [-1.5, 1.0, 3.5], [0.5, 0.3, 0.8])
WORST = -1e6
INDEPENDENT = {
    "4": {"uniform": 0.1308, "times": 0.1149, "everything": 0.1057, "ddim": 0.5456},
    "5": {"uniform": 0.1405, "times": 0.0924, "everything": 0.0799, "ddim": 0.4401},
    "8": {"uniform": 0.0543, "times": 0.0281, "everything": 0.0295, "ddim": 0.2839},
}
"""What an implementation that shares no code with this one found, with 2000 evaluations, on the search's own items."""
LOOKS = (50, 100, 150, 200)
Search = Callable[..., None]


@dataclass(frozen=True)
class OneSolver(ScheduleSpace):
    """Schedules whose steps all take the same decision: only times vary."""

    decision: Decision = Decision()  # noqa: RUF009  frozen

    def designs(self, schedules: Iterable[Sequence[float]] = ()) -> list[Candidate]:
        """The usual grids with this decision."""
        made = (dataclasses.replace(c, decisions=(self.decision,) * len(c.times)) for c in super().designs(schedules))
        return list({c.key: c for c in made}.values())

    def _decision(self, k: int, rng: random.Random) -> Decision:
        return self.decision


def error(plan: Plan, start: Tensor, mixture: Mixture = MIXTURE) -> float:
    """Root mean square error of a plan over first states; infinite if it is not finite."""
    found = rms(run(plan, start, mixture, PROCESS), mixture.flow(start, at(-4.0), at(4.0)))
    return found if math.isfinite(found) else math.inf


def designs(evaluations: int, model: ModelInfo) -> list[Candidate]:
    """The same decision in every step, on the usual grids: every form, order and corrector."""
    times = dict.fromkeys(c.times for c in ScheduleSpace(model, evaluations, last=END, end=END).designs())
    options = itertools.product(("data", "noise"), (1, 2, 3), (False, True))
    decisions = [Decision(order=p, form=form, corrector=corrector) for form, p, corrector in options]
    return [Candidate(t, (d,) * len(t), END) for t, d in itertools.product(times, decisions)]


def uniform(candidates: list[Candidate], model: ModelInfo) -> dict[str, Plan]:
    """Solvers that do the same in every step, on the usual grids: the family's components, chosen once for all."""
    found = {f"per step {k}": candidate.plan(model) for k, candidate in enumerate(candidates)}
    options = itertools.product(
        dict.fromkeys(c.times for c in candidates),
        ({"order": p, "form": f} for p in (1, 2, 3) for f in ("data", "noise")),
        ({"variable": v, "rule": r} for v, r in (("lambda", "exact"), ("lambda", "bh2"), ("rho", "exact"))),
        ({"corrector": c, "lower_order_final": low} for c in (False, True) for low in (False, True)),
    )
    for k, (times, *settings) in enumerate(options):
        named: dict[str, Any] = {key: value for part in settings for key, value in part.items()}
        grid = grids.given(times, END)
        words = ", ".join(f"{key} {value}" for key, value in named.items())
        found[f"{words}; grid {k // 72}"] = unipc(PROCESS, EPSILON, grid, **named)
    return found


def searched(search: Search, space: ScheduleSpace, seed: int, budget: int) -> tuple[Candidate, list[float]]:
    """The best schedule of a search, and the best error after each number of evaluations in `LOOKS`."""
    start = quantiles(200)

    def score(candidate: Candidate) -> float:
        try:
            found = error(candidate.plan(space.model), start)
        except PlanError:
            return WORST
        return -found if math.isfinite(found) else WORST

    pool = EvaluationPool(score)
    search(space, pool, budget, seed=seed)
    values = [-entry.value for entry in pool.entries()]
    return pool.best()[0].candidate, [min(values[:look]) for look in LOOKS if look <= budget]


def measured(plan: Plan, seed: int) -> dict[str, float]:
    """Error on the search's items, on fresh noise, and on another mixture."""
    fresh = torch.randn(2000, 1, generator=torch.Generator().manual_seed(10_000 + seed), dtype=torch.float64)
    return {
        "search": error(plan, quantiles(200)),
        "fresh": error(plan, fresh),
        "shifted": error(plan, fresh, SHIFTED),
    }


def systems(
    evaluations: int, model: ModelInfo, fitted: ModelInfo, best: Candidate
) -> dict[str, tuple[Search, ScheduleSpace]]:
    """Searches by name."""
    edges = {"last": END, "end": END}
    everything = ScheduleSpace(model, evaluations, frozenset({"times", "strategy"}), **edges)
    times = OneSolver(model, evaluations, frozenset({"times"}), **edges, decision=best.decisions[0])
    return {
        "times": (s3, times),
        "everything": (s3, everything),
        "everything, no predictor": (partial(s3, offspring=1), everything),
        "everything, random": (random_search, everything),
        "everything with v3": (s3, ScheduleSpace(fitted, evaluations, frozenset({"times", "strategy"}), **edges)),
    }


def at_evaluations(evaluations: int, seeds: int, budget: int) -> dict[str, Any]:
    """All systems at one number of network evaluations."""
    model = ModelInfo(PROCESS, EPSILON)
    fitted = dataclasses.replace(model, statistics=statistics())
    start = quantiles(200)
    candidates = designs(evaluations, model)
    best = min(candidates, key=lambda c: error(c.plan(model), start))
    plans = uniform(candidates, model)
    errors = {name: error(plan, start) for name, plan in plans.items()}
    plain = [k for k, c in enumerate(candidates) if c.decisions[0].order == 1 and not c.decisions[0].corrector]
    found: dict[str, Any] = {}
    for name, members in (("uniform", list(errors)), ("ddim", [f"per step {k}" for k in plain])):
        chosen = min(members, key=errors.__getitem__)
        values = [measured(plans[chosen], seed) for seed in range(seeds)]
        times = [float(row.time) for row in plans[chosen].rows]
        found[name] = {k: spread([v[k] for v in values]) for k in values[0]} | {"chosen": chosen, "times": times}
    for name, (search, space) in systems(evaluations, model, fitted, best).items():
        runs = [searched(search, space, seed, budget) for seed in range(seeds)]
        values = [measured(candidate.plan(space.model), seed) for seed, (candidate, _) in enumerate(runs)]
        found[name] = {k: spread([v[k] for v in values]) for k in values[0]}
        found[name]["best_after"] = [spread(list(column)) for column in zip(*(r[1] for r in runs), strict=True)]
        found[name]["schedules"] = [candidate.document() for candidate, _ in runs]
    return found | {"uniform_solvers_tried": len(plans)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=200, help="schedules evaluated by each search")
    parser.add_argument("--output", default="results/usf.json")
    options = parser.parse_args()
    begun, rows = time.perf_counter(), {}
    for n in EVALUATIONS:
        rows[str(n)] = at_evaluations(n, options.seeds, options.budget)
        print(n, {k: round(v["search"]["mean"], 4) for k, v in rows[str(n)].items() if isinstance(v, dict)}, flush=True)
    result = {
        "environment": environment(),
        "seeds": options.seeds,
        "budget": options.budget,
        "looks": [look for look in LOOKS if look <= options.budget],
        "independent": INDEPENDENT,
        "rows": rows,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_json(options.output, result)


if __name__ == "__main__":
    main()
