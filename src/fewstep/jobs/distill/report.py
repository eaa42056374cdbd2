"""The page of a distillation: what the student is worth, what it cost, and whether its training was sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.jobs.distill.measure import STUDENT, TEACHER, TEACHER_FEW, Pictures
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.plan import Plan
from fewstep.report import (
    Block,
    Code,
    Column,
    FactList,
    Figure,
    Highlights,
    ImageGrid,
    Note,
    Page,
    Table,
    TableRow,
    plan_table,
    save_page,
)
from fewstep.report.curves import lines
from fewstep.runs import Run
from fewstep.train.memory import shown

Results = Mapping[str, Any]
MOST_CURVES = 5


def write_report(
    run: Run,
    recipe: DistillRecipe,
    results: Results,
    history: Sequence[Mapping[str, float]],
    plan: Plan,
    pictures: Pictures,
) -> Path:
    """Write `report.html` into the run directory and return its path."""
    blocks: list[Block] = [_highlights(recipe, results)]
    blocks += [Note(line, "Health of the training", tone="warning") for line in results["health"]]
    if pictures[0]:
        blocks.append(_grid(recipe, plan, pictures))
    blocks += [
        table(results["evaluation"]),
        *_curves(history),
        plan_table(plan, "The plan", "How the student is run; saved with it."),
        FactList("Memory before activations", {k: shown(v) for k, v in results["training"]["memory"].items()}),
        FactList("Training", _settings(results)),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Use it", _use(run)),
        Code("Command", results["environment"]["command"]),
    ]
    title = f"{recipe.model}: {recipe.method}, {plan.steps} steps"
    return save_page(
        Page(title, _sentence(recipe, results, plan), blocks, label="Distillation"), run.path / "report.html"
    )


def _first(evaluation: Results) -> str:
    """The metric of the headline: the first Fréchet distance, else the first of all."""
    names = list(evaluation["metrics"])
    return next((name for name in names if "frechet" in name), names[0])


def _sentence(recipe: DistillRecipe, results: Results, plan: Plan) -> str:
    """What happened, in words that follow the numbers and nothing else."""
    evaluation = results["evaluation"]
    metric = _first(evaluation)
    values = {name: system[metric]["mean"] for name, system in evaluation["systems"].items()}
    change = evaluation["comparisons"][f"{STUDENT} - {TEACHER_FEW}"][metric]
    verdict = "better than" if change["high"] < 0 else "worse than" if change["low"] > 0 else "not measurably unlike"
    steps = f"{plan.steps} step{'s' if plan.steps > 1 else ''}"
    return (
        f"In {steps} the student is {verdict} its teacher in as many steps: {evaluation['metrics'][metric]['label']} "
        f"{values[STUDENT]:.4g} against {values[TEACHER_FEW]:.4g}; the teacher in {recipe.teacher.steps} steps has "
        f"{values[TEACHER]:.4g}. It took {results['training']['steps']} updates and "
        f"{results['training']['seconds'] / 60:.1f} minutes."
    )


def _highlights(recipe: DistillRecipe, results: Results) -> Block:
    metric = _first(results["evaluation"])
    systems = results["evaluation"]["systems"]
    label = results["evaluation"]["metrics"][metric]["label"]
    items = [(f"{systems[name][metric]['mean']:.3g}", name, label) for name in systems]
    return Highlights("At a glance", items)


def table(evaluation: Results) -> Table:
    """All metrics of all systems, and the null."""
    metrics = evaluation["metrics"]
    columns = [Column(m["label"], better=m.get("better"), digits=4) for m in metrics.values()]
    rows = [
        TableRow(name, [system.get(metric) for metric in metrics], reference=name == TEACHER)
        for name, system in evaluation["systems"].items()
    ]
    text = (
        f"{evaluation['prompts']} held-out items x {evaluation['seeds']} seeds against {evaluation['reference']} "
        "samples of the teacher with other seeds; 95 % intervals over items."
    )
    return Table("Student and teacher", columns, rows, text=text, corner="system")


def _grid(recipe: DistillRecipe, plan: Plan, pictures: Pictures) -> Block:
    names = {STUDENT: f"student, {plan.steps}", TEACHER_FEW: f"teacher, {plan.steps}"}
    names[TEACHER] = f"teacher, {recipe.teacher.steps}"
    rows, systems = pictures
    images = [[images[i] for images in systems.values()] for i in range(len(rows))]
    columns = [names[n] for n in systems]
    return ImageGrid("Equal conditions, equal seeds; network calls", images, rows, columns)


def _curves(history: Sequence[Mapping[str, float]]) -> list[Block]:
    """Losses in one figure, gradient norms in another."""
    if len(history) < 2:
        return []
    figures: list[Block] = []
    known = sorted({name for line in history for name in line if name not in ("step", "loss")})
    groups = {
        "Losses": [n for n in known if "/" not in n and n != "gradient"],
        "Gradient norms": [n for n in known if n.endswith("gradient")],
        "Health signals": [n for n in known if "/" in n and not n.endswith("gradient")],
    }
    for title, names in groups.items():
        curves = {}
        for name in names[:MOST_CURVES]:
            points = [(line["step"], line[name]) for line in history if name in line]
            curves[name] = ([p[0] for p in points], [p[1] for p in points])
        if curves:
            figures.append(Figure(title, lines(curves, xlabel="updates of the student", ylabel="mean of 20 steps")))
    return figures


def _settings(results: Results) -> dict[str, str]:
    """The settings of the loop; the data of a distillation are named in its recipe."""
    settings = results["training"]["settings"]
    return {name: str(value) for name, value in settings.items() if name not in ("data", "size")}


def _use(run: Run) -> str:
    return (
        "import fewstep\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{run.path / "artifacts" / "pipeline"}")'
    )
