"""The report of a schedule search: the gain in one sentence, then everything a sceptic would ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.jobs.search.recipe import ScheduleRecipe
from fewstep.plan import Plan
from fewstep.report import (
    Block,
    Code,
    Column,
    FactList,
    Figure,
    Highlights,
    ImageGrid,
    Page,
    Table,
    TableRow,
    figures,
    plan_table,
    save_page,
)
from fewstep.runs import Run

Results = Mapping[str, Any]


def write_report(
    run: Run, recipe: ScheduleRecipe, results: Results, plans: Mapping[str, Plan], pictures: Mapping[str, Tensor]
) -> Path:
    """Write `report.html` into the run directory and return its path."""
    table, others = tables(results["evaluation"])
    blocks: list[Block] = [_highlights(results), table]
    if pictures:
        blocks.append(_grid(pictures))
    blocks += [
        _curve(recipe, results["search"]),
        *([others] if others.rows else []),
        plan_table(
            next(iter(plans.values())), "The searched plan", "Times, noise levels and coefficients, row by row."
        ),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Use it", _use(run)),
        Code("Command", results["environment"]["command"]),
    ]
    title = f"{recipe.model}: {recipe.steps} evaluations, {recipe.search.method}"
    return save_page(Page(title, _sentence(results), blocks, label="Schedule search"), run.path / "report.html")


def _sentence(results: Results) -> str:
    """What happened, in words that follow the numbers and nothing else."""
    evaluation, search = results["evaluation"], results["search"]
    name, best = next(iter(evaluation["systems"])), evaluation["best_baseline"]
    ours = evaluation["systems"][name]["mean"]
    spent = f"The search made {search['network_calls']:,.0f} network calls, the teacher {search['teacher_calls']:,}."
    if best is None:
        return f"The searched plan ends at a distance of {ours:.3f} from the teacher. {spent}"
    theirs = evaluation["systems"][best]["mean"]
    change = next(iter(evaluation["differences"].values()))
    verb = "closer" if change["high"] < 0 else "farther" if change["low"] > 0 else "not measurably closer or farther"
    return (
        f"On {evaluation['items']} held-out items and {len(evaluation['seeds'])} seeds the searched plan ends {verb}"
        f"{' to' if 'measurably' in verb else ' from' if verb == 'farther' else ' to'} the "
        f"{evaluation['teacher_steps']}-evaluation teacher than the best scheduler of diffusers, {best} "
        f"({ours:.3f} against {theirs:.3f}), at the same number of evaluations. {spent}"
    )


def _highlights(results: Results) -> Block:
    evaluation = results["evaluation"]
    name, best = next(iter(evaluation["systems"])), evaluation["best_baseline"]
    items = [(f"{evaluation['systems'][name]['mean']:.3f}", "distance from the teacher", "held-out")]
    if best is not None:
        items.append((f"{evaluation['systems'][best]['mean']:.3f}", "best of diffusers", best))
    items.append((f"{results['search']['network_calls']:,.0f}", "network calls of the search", "single samples"))
    return Highlights("At a glance", items)


def tables(evaluation: Results, shown: int = 12) -> tuple[Table, Table]:
    """The best schedules, ours among them, and the rest."""
    columns = [Column("distance from the teacher", better="lower", digits=4), Column("on the search's items", digits=4)]
    order = sorted(evaluation["systems"], key=lambda n: evaluation["systems"][n]["mean"])
    rows = [TableRow(n, [evaluation["systems"][n], -evaluation["on_search_items"][n]]) for n in order]
    first = next(iter(evaluation["systems"]))
    kept = [row for k, row in enumerate(rows) if k < shown or row.label == first]
    text = (
        f"{evaluation['metric'].capitalize()}, {evaluation['items']} held-out items x {len(evaluation['seeds'])} "
        "seeds, 95 % bootstrap intervals over items. All rows make the same number of network evaluations."
    )
    rest = [row for row in rows if row not in kept]
    main = Table("Held-out comparison", columns, kept, text=text, corner="schedule")
    return main, Table("The other schedules", columns, rest, corner="schedule")


def _grid(pictures: Mapping[str, Tensor]) -> Block:
    names = list(pictures)
    count = len(pictures[names[0]])
    images = [[pictures[name][i] for name in names] for i in range(count)]
    rows = [f"item {i + 1}" for i in range(count)]
    return ImageGrid(
        "Equal conditions, equal seeds", images, rows, names, text="Evenly spread over the held-out items."
    )


def _curve(recipe: ScheduleRecipe, search: Results) -> Block:
    history = search["history"]
    best, so_far = [], float("-inf")
    for _, value in history:
        so_far = max(so_far, value)
        best.append(so_far)
    drawn = figures.search_curve(
        {recipe.search.method: ([point[0] for point in history], [best])},
        ylabel="best objective so far",
        xlabel="plans evaluated on all items",
    )
    return Figure(
        "The search", drawn, text="The objective is minus the distance from the teacher on the search's items."
    )


def _use(run: Run) -> str:
    return (
        "import fewstep\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{run.path / "artifacts" / "pipeline"}")'
    )
