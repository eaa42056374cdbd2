"""The report of `fewstep diagnose`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fewstep.report import Block, Column, FactList, Figure, Highlights, Note, Page, Table, TableRow, save_page
from fewstep.report.curves import lines


def page(results: dict[str, Any], path: Path) -> Path:
    """Write the page of what `inspect` found; returns its path."""
    settings, network = results["settings"], results["network"]
    blocks: list[Block] = [
        Highlights("At a glance", _highlights(results)),
        plans_table(results),
        *_plan_figures(results["plans"]),
        *_level_figures(results),
        Note(
            "Data are the pipeline's own samples. A field that is no gradient is not wrong by that alone: a gauge part "
            "changes no distribution (arXiv 2402.03845), so read the gap beside its shuffled baseline. A guided "
            "network is neither a gradient nor a score.",
            title="How to read this",
        ),
        FactList("Network", {**network, "guidance": settings["guidance"], "samples": settings["samples"]}),
        FactList("Environment", results["environment"]),
    ]
    summary = (
        f"{network['pipeline']}: where its plan of {_calls(results)} calls makes its error, and what its network is."
    )
    return save_page(Page(f"Inspection of {settings['model']}", summary, blocks, label="fewstep diagnose"), path)


def plans_table(results: dict[str, Any]) -> Table:
    """Final error of every plan, where most of it arises, and how exact the reference is."""
    columns = [
        Column("error", better="lower", digits=4, note="of the final states: root mean square, interval over samples"),
        Column("worst row", digits=0, note="the row with the largest share of the squared error"),
        Column("share", unit="%", digits=0),
        Column("at σ/α", digits=2),
        Column("reference", digits=4, note="error of the fine flow itself"),
    ]
    rows = []
    for name, plan in results["plans"].items():
        worst = max(range(len(plan["share"])), key=lambda k: plan["share"][k])
        level = math.tan(plan["angles"][worst])
        cells = [plan["final"], worst, 100 * plan["share"][worst], min(level, 9999.0), plan["reference"]]
        rows.append(TableRow(name, cells))
    text = "Every plan from the same noise, against the same network's probability flow, finely integrated."
    return Table("Plans", columns, rows, text=text, corner="plan")


def _highlights(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    plans, levels = results["plans"], results["levels"]
    best = min(plans, key=lambda name: plans[name]["final"]["mean"])
    gap = max(level["gap"]["mean"] for level in levels)
    baseline = max(level["shuffled"]["mean"] for level in levels)
    dimension = levels[len(levels) // 2]["dimension"]["mean"]
    return [
        (f"{plans[best]['final']['mean']:.3g}", f"least error at the end: {best}", ""),
        (f"{gap:.2f}", "largest conservativity gap", f"shuffled field: {baseline:.2f}"),
        (f"{dimension:.0f}", f"directions of data at σ/α = {levels[len(levels) // 2]['rho']:.2g}", ""),
    ]


def _plan_figures(plans: dict[str, Any]) -> list[Block]:
    def over_time(name: str) -> dict[str, Any]:
        return {label: (range(len(plan[name])), plan[name]) for label, plan in plans.items()}

    shares = {label: (range(len(plan["share"])), [100 * s for s in plan["share"]]) for label, plan in plans.items()}
    return [
        Figure(
            "Error of each row alone",
            lines(over_time("local"), xlabel="row", ylabel="local error", log_y=True),
            "One row of the plan against many fine steps between the same noise levels, from the plan's own state.",
        ),
        Figure(
            "Where the final error arises",
            lines(shares, xlabel="row", ylabel="share of the squared final error, %"),
            "What is left of each row's error at the end, projected on that error; the shares of a plan sum to 100.",
        ),
    ]


def _level_figures(results: dict[str, Any]) -> list[Block]:
    levels = results["levels"]
    size = math.prod(results["network"]["shape"])
    rho = [level["rho"] for level in levels]

    def drawn(ylabel: str, names: dict[str, str], log_y: bool = False) -> str:
        curves = {label: (rho, [level[name]["mean"] for level in levels]) for name, label in names.items()}
        bands = {
            label: ([level[name]["low"] for level in levels], [level[name]["high"] for level in levels])
            for name, label in names.items()
        }
        settings: dict[str, Any] = {"log_x": True, "log_y": log_y, "falling": True}
        return lines(curves, xlabel="σ/α", ylabel=ylabel, bands=bands, **settings)

    return [
        Figure(
            "Conservativity gap",
            drawn("gap", {"gap": "network", "shuffled": "outputs shuffled"}),
            "0: the noise prediction's Jacobian is symmetric; 1: unrelated to its transpose. Bands: 95 % over samples.",
        ),
        Figure(
            "Divergence",
            drawn("σ div(ε) / D", {"noise_share": "taken for noise"}),
            "The part of all directions that the network takes for noise: 1 at the data, 0 in pure noise.",
        ),
        Figure(
            "Local dimension",
            drawn("D − σ div(ε)", {"dimension": f"directions of data, of {size}"}),
            "A plateau is the dimension of the data; small noise shows the network's error, large noise the curvature.",
        ),
        Figure(
            "Denoising loss",
            drawn("per number", {"loss": "‖ε̂ − ε‖² / D"}),
            "On the pipeline's own samples; its minimum is not zero.",
        ),
    ]


def _calls(results: dict[str, Any]) -> int:
    return len(next(iter(results["plans"].values()))["local"])
