"""An alignment, unit by unit: measure, train in legs, keep the best, attach the plan, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.distillation.health import advice
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.align.measure import drawn
from fewstep.jobs.align.recipe import AlignRecipe
from fewstep.jobs.align.report import write_report
from fewstep.jobs.align.training import aligned, best_check, network_after
from fewstep.jobs.context import Items, seeds_for, tensor_unit
from fewstep.jobs.distill.measure import different
from fewstep.pipelines import attach, exchanged, identity_of, save_pipeline
from fewstep.pipelines.protocol import Pipeline
from fewstep.runs import Run


def run(recipe: AlignRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder: the best student with the plan that it runs by), the
    weights of every leg, `results.json` and `report.html`.
    """
    recipe.check()
    context = AlignContext.open(recipe, run)
    context.check()
    checks, messages = aligned(context)
    best = best_check(checks)

    def finished() -> Any:
        return pipeline_of(context, checks[best]["updates"])

    run.unit("pipeline", finished, save=save_pipeline, load=lambda folder: None)
    history = [line for check in checks for line in check.get("history", [])][-len(checks[-1].get("history", [])) :]
    results = context.write_results(
        checks=[{k: v for k, v in check.items() if k not in ("history", "covered")} for check in checks],
        best=best,
        alarm=messages,
        health=advice(history),
        history=history,
    )
    return write_report(run, recipe, results, context.plan, _pictures(context, checks[best]["updates"]))


def pipeline_of(context: AlignContext, updates: int) -> Pipeline:
    """The pipeline of the student after so many updates, which follows its plan."""
    network = network_after(context, updates)
    pipe = exchanged(context.pipe, {} if network is None else {context.backbone: network})
    attach(pipe, context.plan.replace(identity=identity_of(pipe, 1.0)))
    return pipe


def _pictures(context: AlignContext, updates: int) -> tuple[list[str], list[list[Any]]]:
    """What the rows show, and of each the picture before and after, of equal seeds."""
    settings = context.recipe.evaluation
    given = context.conditions(settings.conditions, settings.items, held_out=True)
    names = [f"item {i + 1}" for i in range(settings.items)] if given is None else [str(c) for c in given]
    picks = different(names, settings.pictures)
    seeds = seeds_for("evaluation", settings.seeds[0], settings.items)
    items = Items(given, seeds).pick(picks)

    def compute() -> dict[str, Any]:
        return {
            name: drawn(context, network_after(context, n), items) for name, n in (("before", 0), ("after", updates))
        }

    found = tensor_unit(context.run, "pictures", compute)
    return [names[i] for i in picks], [[a, b] for a, b in zip(found["before"], found["after"], strict=True)]
