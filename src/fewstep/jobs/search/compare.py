"""The proof of a schedule search: every plan against the teacher on held-out items, and pictures of the main ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.jobs.context import Items, slug, tensor_unit
from fewstep.jobs.search.context import SearchContext
from fewstep.jobs.sharing import SharedRows
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.plan import Plan

OWN, FOUND, SCALED = "the pipeline's own", "searched", "searched + Q-Sched"


def compare_plans(context: SearchContext, plans: Mapping[str, Plan]) -> dict[str, Any]:
    """Distance from the teacher on held-out conditions and seeds; the best baseline is chosen on the search's own.

    Intervals are over conditions, seeds averaged.
    """
    settings, measured = context.recipe.evaluation, {}
    held_out = _held_out(context)
    with context.run.progress("held-out comparison", total=len(plans)) as advance:
        for name, plan in plans.items():
            advance(1)
            try:
                compute = partial(_measured, context, held_out, plan)
                measured[name] = context.run.unit(f"measure-{slug(name)}", compute, shared=True)
            except FewstepError as error:
                if name in (FOUND, SCALED):
                    raise
                context.run.say(f"[dim]{name} cannot run in this pipeline and is left out: {error}[/dim]")
    errors = {name: torch.tensor(m["errors"], dtype=torch.float64) for name, m in measured.items()}
    value = {name: m["value"] for name, m in measured.items()}
    baselines = [n for n in measured if n not in (FOUND, SCALED) and bool(errors[n].isfinite().all())]
    best = max(baselines, key=lambda n: value[n], default=None)
    ours = [n for n in (FOUND, SCALED) if n in plans]
    rows = {n: mean_interval(e.mean(0)).as_dict() | {"seeds": e.mean(1).tolist()} for n, e in errors.items()}
    return {
        "metric": "root mean square distance from the teacher's result over its standard deviation",
        "items": settings.items,
        "seeds": settings.seeds,
        "teacher_steps": context.recipe.teacher.steps,
        "systems": rows,
        "on_search_items": value,
        "best_baseline": best,
        "differences": {
            f"{n} - {best}": difference_interval(errors[n].mean(0), errors[best].mean(0)).as_dict()
            for n in ours
            if best is not None
        },
    }


def pictures(context: SearchContext, plans: Mapping[str, Plan], best: str | None) -> dict[str, Tensor]:
    """The same held-out items drawn by the main plans, (P, 3, H, W) each; empty for what is not an image.

    Args:
        context: of the job.
        plans: all that were compared.
        best: name of the best baseline.
    """
    settings = context.recipe.evaluation
    count = min(settings.pictures, settings.items)
    if not count:
        return {}
    some = _held_out(context)[0].pick([i * settings.items // count for i in range(count)])
    shown = {n: plans[n] for n in (FOUND, SCALED, best, OWN) if n is not None and n in plans}
    shown["teacher"] = context.teacher
    with torch.no_grad():
        drawn = {name: some.draw(context.main, plan).cpu() for name, plan in shown.items()}
    return {name: images for name, images in drawn.items() if images.ndim == 4}


def _held_out(context: SearchContext) -> list[Items]:
    """The same conditions with each of the seeds."""
    settings = context.recipe.evaluation
    return [context.items("evaluation", settings.conditions, settings.items, seed) for seed in settings.seeds]


def _measured(context: SearchContext, held_out: list[Items], plan: Plan) -> dict[str, Any]:
    """The objective on the search's items, and held-out distances from the teacher (seeds, items)."""
    objective = context.objective
    with torch.no_grad():
        value = float(objective(plan, range(objective.size)).mean())
    drawn, truth = _drawn(context, held_out, plan), _truth(context, held_out)
    away = (drawn - truth).flatten(2).square().mean(2).sqrt() / truth.std()
    return {"value": value, "errors": away.tolist()}


def _truth(context: SearchContext, held_out: list[Items]) -> Tensor:
    """The teacher's results, (S, P, ...)."""
    compute = partial(_drawn, context, held_out, context.teacher)
    return tensor_unit(context.run, "truth", lambda: {"states": compute()}, shared=True)["states"]


def _drawn(context: SearchContext, held_out: list[Items], plan: Plan) -> Tensor:
    """Final states (S, P, ...)."""
    run, size = context.run, context.recipe.batch
    rows = [SharedRows(run, "held-out", i.pairs, i.drawing(context.main, "latent"), size) for i in held_out]
    with torch.no_grad():
        return torch.stack([one(plan, range(len(one.items))) for one in rows])
