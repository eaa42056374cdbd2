"""The page of an alignment: what was won, what it cost, and where it should have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.jobs.align.recipe import AlignRecipe
from fewstep.plan import Plan
from fewstep.report import (
    Block,
    Code,
    Column,
    FactList,
    Figure,
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

MEASURES = {
    "reward": Column("reward", better="higher", digits=4, note="what was trained on"),
    "judge": Column("judge", better="higher", digits=4, note="what was not"),
    "recall": Column("recall", better="higher", digits=3),
    "diversity": Column("diversity", better="higher", digits=4, note="between seeds of a prompt"),
    "distance": Column("distance", better="lower", digits=4, note="Fréchet, to the untouched student"),
    "real": Column("distance to data", better="lower", digits=4, note="Fréchet, to real pictures"),
}


def write_report(
    run: Run,
    recipe: AlignRecipe,
    results: Mapping[str, Any],
    plan: Plan,
    pictures: tuple[list[str], list[list[Any]]],
) -> Path:
    """Write `report.html` into the run directory and return its path."""
    checks, best = results["checks"], results["best"]
    blocks: list[Block] = [Note(line, "The reward is hacked", tone="warning") for line in results["alarm"]]
    blocks += [Note(line, "Health of the training", tone="warning") for line in results["health"]]
    if pictures[0]:
        blocks.append(ImageGrid("Equal prompts, equal seeds", pictures[1], pictures[0], ["before", "after"]))
    blocks += [_table(recipe, checks, best), *_curves(checks)]
    use = f'import fewstep as fs\n\npipe = fs.load("{run.path / "artifacts" / "pipeline"}")'
    blocks += [
        plan_table(plan, "The plan", "How the student is run; saved with it."),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Use it", use),
        Code("Command", results["environment"]["command"]),
    ]
    title = f"{recipe.model}: {recipe.method}"
    return save_page(Page(title, _sentence(recipe, checks, best), blocks, label="Alignment"), run.path / "report.html")


def _sentence(recipe: AlignRecipe, checks: Sequence[Mapping[str, Any]], best: int) -> str:
    """What happened, in words that follow the numbers and nothing else."""
    start, end = checks[0], checks[best]
    if best == 0:
        return "No measurement was better than the untouched student, which is kept."
    parts = [
        f"{name} {start[name]:.4g} before, {end[name]:.4g} after"
        for name in MEASURES
        if start[name] is not None and end[name] is not None
    ]
    return f"The student after {end['updates']} updates of {recipe.method} is kept: {'; '.join(parts)}."


def _table(recipe: AlignRecipe, checks: Sequence[Mapping[str, Any]], best: int) -> Table:
    known = [name for name in MEASURES if any(check[name] is not None for check in checks)]
    several = list(checks[0]["rewards"]) if len(checks[0]["rewards"]) > 1 else []
    columns = [MEASURES[name] for name in known] + [Column(name, better="higher", digits=4) for name in several]
    rows = [
        TableRow("untouched" if k == 0 else f"{check['updates']} updates",
                 [check[name] for name in known] + [check["rewards"][name] for name in several],
                 note="kept" if k == best else "", reference=k == 0)
        for k, check in enumerate(checks)
    ]  # fmt: skip
    text = (
        f"{recipe.evaluation.items} held-out items x {len(recipe.evaluation.seeds)} seeds; "
        f"{recipe.evaluation.reference} samples of the untouched student as reference."
    )
    return Table("Along the training", columns, rows, text=text, corner="after")


def _curves(checks: Sequence[Mapping[str, Any]]) -> list[Block]:
    figures: list[Block] = []
    for name in MEASURES:
        points = [(check["updates"], check[name]) for check in checks if check[name] is not None]
        if len(points) > 1:
            curve = {name: ([p[0] for p in points], [p[1] for p in points])}
            figures.append(
                Figure(MEASURES[name].label.capitalize(), lines(curve, xlabel="updates", ylabel=MEASURES[name].label))
            )
    return figures
