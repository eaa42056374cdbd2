"""The choice, unit by unit: costs of single calls, plans in full precision, bits, Q-Sched, the front on held-out items.

The space is a product, and its factors hardly interact: the order of solvers at a number of steps is the same in full
precision and in low bits. So plans are compared in full precision on a quarter of the items, only the best of every
number of steps meets the schemes, and only what is near the front is looked at on all items.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.errors import FewstepError
from fewstep.jobs.auto.context import AutoContext, timing_spread
from fewstep.jobs.auto.points import Point, front, knee, meeting
from fewstep.jobs.auto.recipe import MIXED, RESIDENT, AutoRecipe
from fewstep.jobs.auto.refine import refined
from fewstep.jobs.auto.report import write_report
from fewstep.jobs.context import Items, slug
from fewstep.jobs.sharing import SharedRows
from fewstep.metrics.intervals import mean_interval
from fewstep.pipelines import attach, exchanged, identity_of, save_pipeline
from fewstep.plan import Plan
from fewstep.runs import Run

MARGIN = 1.25
"""A point whose first distance is at most so many times that of a point that beats it is looked at again."""
NOISY = 0.5
"""Spread of timings above which a budget of time says nothing."""


def run(recipe: AutoRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder at the chosen point), a plan file for every point of the
    front, `results.json` and `report.html`.
    """
    recipe.check()
    return finish(AutoContext.open(recipe, run, fuse=True))[1]


def finish(context: AutoContext) -> tuple[Any, Path]:
    """The chosen pipeline and the report.

    Raises:
        FewstepError: nothing meets the budgets, or the machine is too noisy for a budget of time.
    """
    recipe, run = context.recipe, context.run
    costs, ranked, candidates, compared = looked_at(context)
    shown = front(compared)
    chosen = _chosen(recipe, shown)
    models, plan, added = refined(context, chosen)
    if not run.done("front"):
        plans = {point: context.plan_named(point.plan) for point in shown}
        _ahead(context, context.held_out, plans, len(context.held_out.seeds))
        _ = context.held_out_truth  # a unit of its own, which all processes share
    last = (models, plan) if any(found["kept"] for found in added.values()) else None
    measured = run.unit("front", lambda: _held_out(context, shown, chosen, last))
    pipe = exchanged(context.pipe, models)
    attach(pipe, plan.replace(identity=identity_of(pipe, context.guidance)))
    run.unit("pipeline", lambda: None, save=lambda _, draft: save_pipeline(pipe, draft), load=lambda folder: None)
    for k, point in enumerate(shown):
        context.plan_named(point.plan).save(run.artifact(f"front/{k}.json"), overwrite=True)
    results = context.write_results(
        costs=costs,
        plans=ranked,
        front=[dataclasses.asdict(point) for point in shown],
        chosen=shown.index(chosen),
        measured=measured,
        added=added,
        candidates=len(candidates),
    )
    return pipe, write_report(context, results, shown, chosen)


def looked_at(context: AutoContext) -> tuple[dict[str, Any], dict[str, float], list[Point], list[Point]]:
    """What single calls cost, the distance of every plan, all candidates, and those compared on all items.

    Raises:
        FewstepError: as `finish`.
    """
    recipe = context.recipe
    costs = context.run.unit("costs", lambda: _costs(context))
    if recipe.latency and max(costs["spread"].values()) > NOISY:
        hint = "Stop what else runs here, or leave the latency out."
        raise FewstepError(
            f"timings spread by {max(costs['spread'].values()):.0%}: a latency budget says nothing here",
            value=recipe.latency, hint=hint,
        )  # fmt: skip
    ranked = _ranked(context, list(context.plans))
    best = _best_plans(context, ranked)
    if more := [guided for name in best.values() for guided in context.guided_names(name)]:
        ranked |= _ranked(context, more)
        best = _best_plans(context, ranked)
    candidates = meeting(_candidates(context, costs, best), recipe.bytes_limit, recipe.time_limit)
    return costs, ranked, candidates, _compared(context, candidates)


# --- costs ----------------------------------------------------------------------------------------------------------


def _costs(context: AutoContext) -> dict[str, Any]:
    """Bytes and times: of a network call by scheme, of the rest of a picture by the scheme of the other parts."""
    space, size = context.recipe.space, context.size({})
    by_steps = sorted(context.plans.values(), key=lambda plan: plan.steps)
    short, long = by_steps[0], by_steps[-1]
    found: dict[str, Any] = {"size": {}, "call": {}, "rest": {}, "spread": {}}
    full = context.timed({}, short)
    for scheme in _affordable(context):
        models = context.low(scheme, "none")
        few = full if scheme == "none" else context.timed(models, short)
        found["spread"][scheme] = timing_spread(few)
        if long.steps > short.steps:
            many = context.timed(models, long)
            call = (statistics.median(many) - statistics.median(few)) / (long.steps - short.steps)
        else:
            call = statistics.median(few) / short.steps
        found["call"][scheme] = max(call, 0.0)
        found["size"][scheme] = context.size(models) - size
    calls = statistics.median(found["call"].values()) if "none" not in found["call"] else found["call"]["none"]
    for parts in space.parts if context.others else ["none"]:
        models = context.low("none", parts)
        took = full if parts == "none" else context.timed(models, short)
        found["rest"][parts] = max(statistics.median(took) - short.steps * calls, 0.0)
        found["size"][f"parts {parts}"] = context.size(models) - size
    return {**found, "full": size}


def _affordable(context: AutoContext) -> list[str]:
    """The schemes, without those for every layer where these would take too long to choose."""
    schemes, limit = context.recipe.space.schemes, context.recipe.space.layer_seconds
    if any(scheme.startswith(MIXED) for scheme in schemes) and (took := context.seconds_per_layer()) > limit:
        context.run.say(f"Bits per layer are left out: measuring the layers would take {took:.0f} s (layer_seconds).")
        return [scheme for scheme in schemes if not scheme.startswith(MIXED)]
    return schemes


def _candidates(context: AutoContext, costs: Mapping[str, Any], best: Mapping[int, str]) -> list[Point]:
    """Every number of steps, with its best plan, at every scheme."""
    parts = list(costs["rest"])
    return [
        Point(
            plan=plan, steps=steps, scheme=scheme, parts=other,
            size=costs["full"] + costs["size"][scheme] + costs["size"][f"parts {other}"],
            milliseconds=costs["rest"][other] + context.plan_named(plan).steps * costs["call"][scheme],
        )
        for (steps, plan), scheme, other in itertools.product(best.items(), costs["call"], parts)
    ]  # fmt: skip


# --- comparisons ----------------------------------------------------------------------------------------------------


def _ranked(context: AutoContext, names: Sequence[str]) -> dict[str, float]:
    """Of every plan its distance in full precision, on a quarter of the items."""
    rows, few, found = context.rows(context.searched, "none", "none"), _few(context), {}
    missing = [name for name in names if not context.run.done(f"plan-{slug(name)}")]
    rows.ahead((context.plan_named(name), range(few)) for name in missing)
    with context.run.progress("plans in full precision", total=len(names)) as advance:
        for name in names:
            compute = partial(_mean, context, rows, context.plan_named(name), few)
            found[name] = context.run.unit(f"plan-{slug(name)}", compute)
            advance(1, note=f"{name}: {found[name]:.3f}")
    return found


def _best_plans(context: AutoContext, ranked: Mapping[str, float]) -> dict[int, str]:
    """The best plan of every number of steps."""
    found: dict[int, str] = {}
    for name in sorted(ranked, key=ranked.__getitem__):
        found.setdefault(context.plan_named(name).steps, name)
    return dict(sorted(found.items()))


def _compared(context: AutoContext, candidates: Sequence[Point]) -> list[Point]:
    """The candidates with their distances: a first look at all, a second at those near the front."""
    first = _looked(context, candidates, _few(context))
    rivals = [
        point
        for point in first
        if not any(
            dataclasses.replace(other, distance=MARGIN * other.distance).beats(point) for other in first
        )
    ]  # fmt: skip
    return _looked(context, rivals, context.recipe.search.items)


def _looked(context: AutoContext, points: Sequence[Point], count: int) -> list[Point]:
    """The points with their distances on so many items."""
    missing = [point for point in points if not context.run.done(_unit(point, count))]
    _ahead(context, context.searched, {point: context.plan_named(point.plan) for point in missing}, count)
    return [_measured(context, point, count) for point in points]


def _ahead(context: AutoContext, items: Items, plans: Mapping[Point, Plan], count: int) -> None:
    """Let several processes draw what the distances of these points will ask for."""
    for scheme, parts in dict.fromkeys((point.scheme, point.parts) for point in plans):
        same = [plan for point, plan in plans.items() if (point.scheme, point.parts) == (scheme, parts)]
        context.rows(items, scheme, parts).ahead((plan, range(count)) for plan in same)


def _unit(point: Point, count: int) -> str:
    scheme = point.scheme.removesuffix(RESIDENT)  # where codes lie changes no picture
    return f"point-{slug(f'{point.plan} {scheme} {point.parts} {count}')}"


def _measured(context: AutoContext, point: Point, count: int) -> Point:
    rows = context.rows(context.searched, point.scheme, point.parts)

    def compute() -> dict[str, float]:
        return {"distance": _mean(context, rows, context.plan_named(point.plan), count)}

    distance = context.run.unit(_unit(point, count), compute)["distance"]
    context.run.say(
        f"[dim]{point.name} ({point.plan}): {point.size / 1e6:.3g} MB, {point.milliseconds:.3g} ms, "
        f"distance {distance:.3f} on {count} items[/dim]"
    )
    return dataclasses.replace(point, distance=distance)


def _mean(context: AutoContext, rows: SharedRows, plan: Plan, count: int) -> float:
    return float(context.distances(context.search_truth, rows, plan, count).mean())


def _few(context: AutoContext) -> int:
    return max(4, context.recipe.search.items // 4)


def _chosen(recipe: AutoRecipe, shown: Sequence[Point]) -> Point:
    """The knee of the front: a cost that has a budget is met already, and counts no more."""
    flat = [
        dataclasses.replace(
            point, size=0.0 if recipe.memory else point.size, milliseconds=0.0 if recipe.latency else point.milliseconds
        )
        for point in shown
    ]
    return shown[flat.index(knee(flat))]


# --- the front ------------------------------------------------------------------------------------------------------


def _held_out(
    context: AutoContext, shown: Sequence[Point], chosen: Point, last: tuple[dict[str, nn.Module], Plan] | None
) -> list[dict[str, Any]]:
    """Distances on held-out items and measured times of every point of the front; of the chosen one also `tuned`, with
    what was added."""
    found = []
    for point in shown:
        plan, models = context.plan_named(point.plan), context.low(point.scheme, point.parts)
        row: dict[str, Any] = {"distance": _interval(context, point, plan)}
        row["milliseconds"] = statistics.median(context.timed(models, plan))
        if point == chosen and last is not None:
            row["tuned"] = _interval(context, point, last[1], last[0])
            row["milliseconds"] = statistics.median(context.timed(*last))
        found.append(row)
    return found


def _interval(
    context: AutoContext, point: Point, plan: Plan, models: Mapping[str, nn.Module] | None = None
) -> dict[str, Any]:
    items = context.held_out
    rows = context.rows(items, point.scheme, point.parts, models)
    return mean_interval(context.distances(context.held_out_truth, rows, plan, len(items.seeds))).as_dict()
