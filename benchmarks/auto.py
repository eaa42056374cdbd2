"""The front of `fewstep auto` against a hand-made grid at equal cost, on shipped models.

    python benchmarks/auto.py
    python benchmarks/auto.py --models mnist-dit --seeds 0 --output quick.json

The grid is what one would try by hand: every number of steps, the pipeline's own solver, DDIM and DPM-Solver++, full
precision and the usual schemes; all on the same items, as many of them as network evaluations of `auto` pay for. Both
choose their fronts by what they measured themselves; both fronts are then measured on the same held-out items, at the
same bytes and at times predicted from the same calls. A point of the grid is matched if a point of `auto` takes no
more bytes and no more time, and its distance is at most a tenth of a unit larger (a unit: another seed). The
share of the box below the worst point that a front dominates tells the two in one number (hypervolume).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep import recipes
from fewstep.files import write_json
from fewstep.jobs.auto.context import AutoContext
from fewstep.jobs.auto.job import looked_at
from fewstep.jobs.auto.points import Point, front
from fewstep.jobs.auto.recipe import RESIDENT
from fewstep.runs import Run
from fewstep.runs.environment import environment

GRID_STEPS, GRID_SOLVERS = (1, 2, 4, 8), ("own", "ddim", "dpm_solver_pp_2m")
GRID_SCHEMES = ("none", "w8a8", "w4a16", "w4a8")
MARGIN = 0.1
"""Of a distance, in pictures of another seed."""


def spent(context: AutoContext, ranked: Iterable[str], first: Sequence[Point], second: Sequence[Point]) -> int:
    """Network evaluations that comparisons of `auto` took; where codes lie in memory changes no picture."""
    items = len(context.searched.seeds)
    few = max(4, items // 4)
    pictures = [
        {(p.plan, p.scheme.removesuffix(RESIDENT), p.parts): p.steps for p in points} for points in (first, second)
    ]
    plans = sum(context.plan_named(name).steps for name in ranked)
    return few * (plans + sum(pictures[0].values())) + items * sum(pictures[1].values())


def grid(context: AutoContext, costs: dict[str, Any], evaluations: int) -> tuple[list[Point], int]:
    """The hand-made candidates with their distances, and on how many items they were compared."""
    names = [
        name
        for name, plan in context.plans.items()
        if plan.steps in GRID_STEPS and "searched" not in name and name.rpartition(" ")[0] in GRID_SOLVERS
    ]
    schemes = [scheme for scheme in GRID_SCHEMES if scheme in costs["call"]]
    total = sum(context.plans[name].steps for name, _ in itertools.product(names, schemes))
    count = max(2, min(len(context.searched.seeds), evaluations // total))
    found = []
    for name, scheme in itertools.product(names, schemes):
        steps = context.plans[name].steps
        away = context.distances(
            context.search_truth, context.rows(context.searched, scheme, "none"), context.plans[name], count
        )
        size = costs["full"] + costs["size"][scheme]
        time = costs["rest"]["none"] + steps * costs["call"][scheme]
        found.append(Point(name, steps, scheme, "none", size, time, float(away.mean())))
    return found, count


def held_out(context: AutoContext, points: Sequence[Point]) -> list[Point]:
    """The points with their distances on the held-out items."""
    count, found = len(context.held_out.seeds), []
    for point in points:
        rows = context.rows(context.held_out, point.scheme.removesuffix(RESIDENT), point.parts)
        away = context.distances(context.held_out_truth, rows, context.plan_named(point.plan), count)
        found.append(dataclasses.replace(point, distance=float(away.mean())))
    return found


def matched(ours: Sequence[Point], theirs: Sequence[Point]) -> list[bool]:
    """Which of their points one of ours equals or beats."""
    return [
        any(
            a.size <= b.size * 1.001 and a.milliseconds <= b.milliseconds * 1.001 and a.distance <= b.distance + MARGIN
            for a in ours
        )
        for b in theirs
    ]  # fmt: skip


def volume(points: Sequence[Point], corner: tuple[float, ...], draws: int = 200_000) -> float:
    """Share of the box between 0 and the corner that the points dominate."""
    uniform = torch.rand(draws, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = torch.tensor([[c / w for c, w in zip(p.costs(), corner, strict=True)] for p in points])
    covered = torch.zeros(draws, dtype=torch.bool)
    for point in scaled.double():
        covered |= (uniform >= point).all(1)
    return float(covered.double().mean())


def compared(model: str, seed: int, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Both fronts of one model and one seed of the search."""
    recipe = recipes.resolve({
        "kind": "auto", "model": model, "search": {"seed": seed}, "evaluation": {"seed": 101 + seed, "pictures": 0},
        **settings,
    })  # fmt: skip
    with Run(folder, recipe.plain(), quiet=True) as run:
        context = AutoContext.open(recipe, run, fuse=True)
        costs, ranked, candidates, seen = looked_at(context)
        evaluations = spent(context, ranked, candidates, seen)
        hand, count = grid(context, costs, evaluations)
        ours, theirs = held_out(context, front(seen)), held_out(context, front(hand))
    both = [*ours, *theirs]
    corner = tuple(max(column) for column in zip(*(point.costs() for point in both), strict=True))
    return {
        "model": model, "seed": seed, "evaluations": evaluations, "grid_items": count, "grid_candidates": len(hand),
        "front": [dataclasses.asdict(point) for point in ours], "grid": [dataclasses.asdict(point) for point in theirs],
        "grid_points_matched": matched(ours, theirs), "auto_points_matched_by_grid": matched(theirs, ours),
        "volume": volume(ours, corner), "grid_volume": volume(theirs, corner),
    }  # fmt: skip


SETTINGS: dict[str, dict[str, Any]] = {
    "emoji-student-guided": {"steps": 4},
    "mnist-dit": {"guidance": 2.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", default="results/auto.json")
    told = parser.parse_args()
    rows, begun = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        for model, seed in itertools.product(told.models, told.seeds):
            rows.append(compared(model, seed, SETTINGS.get(model, {}), Path(place) / f"{model}-{seed}"))
            row = rows[-1]
            print(
                f"{model}, seed {seed}: volume {row['volume']:.4f} (grid {row['grid_volume']:.4f}), "
                f"{sum(row['grid_points_matched'])} of {len(row['grid'])} points of the grid matched",
                flush=True,
            )
    settings = {"margin": MARGIN, "grid_steps": GRID_STEPS, "grid_schemes": GRID_SCHEMES, "seeds": told.seeds}
    took = time.perf_counter() - begun
    write_json(
        told.output, {"environment": environment(), "settings": settings, "rows": rows, "seconds": took}, over="all"
    )


if __name__ == "__main__":
    main()
