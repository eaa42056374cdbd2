"""A distillation, unit by unit: open, follow the teacher, train, attach the plan, measure, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.distillation.health import advice
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.measure import compare_students
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.jobs.distill.report import write_report
from fewstep.jobs.distill.training import student_pipeline, train
from fewstep.jobs.distill.tune import tuned
from fewstep.pipelines import save_pipeline
from fewstep.runs import Run


def run(recipe: DistillRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder: the student with the plan that it runs by), the
    checkpoint it was trained to, `results.json` and `report.html`.
    """
    recipe.check()
    context = DistillContext.open(recipe, run)
    context.check()
    trained = train(context)
    plan = tuned(context, trained)

    def finished() -> Any:
        return student_pipeline(context, trained, plan)

    run.unit("pipeline", finished, save=save_pipeline, load=lambda folder: None)
    numbers, pictures = compare_students(context, trained, plan)
    advised = [line for one in trained for line in advice(one["record"]["history"])]
    results = context.write_results(
        training={k: v for k, v in trained[0]["record"].items() if k != "history"},
        students=len(trained),
        health=advised,
        evaluation=numbers,
    )
    for line in advised:
        run.say(f"[yellow]{line}[/yellow]")
    return write_report(run, recipe, results, trained[0]["record"]["history"], plan, pictures)
