"""A schedule search, unit by unit: open, follow the teacher, search, compare on held-out items, report, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.jobs.search.baselines import diffusers_plans
from fewstep.jobs.search.compare import FOUND, OWN, SCALED, compare_plans, pictures
from fewstep.jobs.search.context import SearchContext
from fewstep.jobs.search.recipe import ScheduleRecipe
from fewstep.jobs.search.report import tables, write_report
from fewstep.jobs.tuning import scaled, spending, tune_scales
from fewstep.metrics import load_features
from fewstep.pipelines import attach, save_pipeline
from fewstep.pipelines.process import training_scheduler
from fewstep.plan import Plan
from fewstep.report.terminal import to_rich
from fewstep.runs import Run
from fewstep.schedules import SearchTask, search_method
from fewstep.solvers import SOLVERS
from fewstep.zoo import placed


def run(recipe: ScheduleRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/plan.json` (the schedule), `artifacts/pipeline` (a diffusers folder that follows it),
    every evaluation of the search, `results.json` and `report.html`.
    """
    recipe.check()
    if recipe.search.objective == "distribution":
        load_features(placed(recipe.search.features))  # may need a download: seen to be there before all work
    context = SearchContext.open(recipe, run)
    found, plan = search_schedule(context)
    plans = {FOUND: plan}
    if recipe.search.q_sched:
        found = found | {"q_sched": run.unit("q-sched", lambda: _tuned(context, plans[FOUND]), shared=True)}
        plans[SCALED] = scaled(plans[FOUND], found["q_sched"]["theta"])
        plans[SCALED].save(run.artifact("plan-q-sched.json"), overwrite=True)
    best = list(plans.values())[-1]
    plans |= _baselines(context)
    numbers = compare_plans(context, plans)
    drawn = pictures(context, plans, numbers["best_baseline"])
    run.unit(
        "pipeline", lambda: _following(context, best), save=save_pipeline, load=lambda folder: None, artifact="pipeline"
    )
    results = context.write_results(search=found, evaluation=numbers)
    if not run.quiet:
        import rich

        rich.print(to_rich(tables(numbers)[0]))
    return write_report(run, recipe, results, plans, drawn)


def search_schedule(context: SearchContext) -> tuple[dict[str, Any], Plan]:
    """What the search found and cost, and the plan, which lies in `artifacts/plan.json`."""
    recipe, settings, run = context.recipe, context.recipe.search, context.run

    def compute() -> dict[str, Any]:
        with spending(run, f"{settings.method}, {recipe.steps} steps", settings.budget) as watch:
            task = SearchTask(
                context.model, recipe.steps, context.objective, context.trajectory, settings.budget, settings.seed,
                SOLVERS[settings.solver], storage=settings.storage or None if run.leads else None,
                scratch=run.scratch("search") if run.leads else None,
                parts=frozenset(settings.parts), most_skipped=settings.most_skipped, watch=watch,
            )  # fmt: skip
            found = search_method(settings.method)(task)
        found.plan.replace(identity=context.identity).save(run.artifact("plan.json"), overwrite=True)
        return {
            "value": found.value,
            "spent": found.spent,
            "network_calls": found.spent * settings.items * recipe.steps,
            "teacher_calls": recipe.teacher.steps * settings.items,
            "history": [list(point) for point in found.history],
        }

    return run.unit("search", compute, shared=True), Plan.load(run.artifact("plan.json"))


def _tuned(context: SearchContext, plan: Plan) -> dict[str, Any]:
    """Two scalars per step on top of the schedule."""
    settings = context.recipe.search
    found = tune_scales(
        context.run, plan, context.objective, settings.q_sched, method=settings.searcher, seed=settings.seed
    )  # fmt: skip
    return {"theta": list(found.theta), "value": found.value, "spent": found.spent}


def _baselines(context: SearchContext) -> dict[str, Plan]:
    """What the pipeline does and what diffusers offers."""
    plans: dict[str, Plan] = {}
    try:
        plans[OWN] = context.read_plan()
    except FewstepError as error:
        context.run.say(f"The pipeline's own schedule is left out: {error}")
    if context.recipe.evaluation.baselines:
        shift = getattr(context.process, "shift", None)
        plans |= diffusers_plans(training_scheduler(context.pipe), context.recipe.steps, shift)
    return plans


def _following(context: SearchContext, plan: Plan) -> Any:
    attach(context.pipe, plan)
    return context.pipe
