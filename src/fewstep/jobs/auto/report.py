"""The report of a choice: the front, the chosen point in one sentence per decision, pictures along the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.jobs.auto.context import AutoContext
from fewstep.jobs.auto.points import Point
from fewstep.jobs.auto.recipe import MIXED, RESIDENT
from fewstep.quant import native
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
    figures,
    save_page,
)

Results = Mapping[str, Any]


def write_report(context: AutoContext, results: Results, shown: Sequence[Point], chosen: Point) -> Path:
    """Write `report.html` into the run directory and return its path."""
    recipe, run = context.recipe, context.run
    place = run.path / "artifacts" / "pipeline"
    row = results["measured"][results["chosen"]]
    distance, full = row.get("tuned", row["distance"]), results["costs"]["full"]
    blocks: list[Block] = [
        Highlights("The chosen point", [
            (chosen.name, "evaluations x scheme", chosen.plan),
            (f"{chosen.size / 1e6:.3g} MB", "all weights in memory", f"full precision: {full / 1e6:.3g} MB"),
            (f"{row['milliseconds']:.3g} ms", "per picture", f"predicted: {chosen.milliseconds:.3g} ms"),
            (f"{distance['mean']:.3f}", "distance from the reference", "1 is another seed's picture"),
        ]),
        Note("\n\n".join(reasons(context, results, shown, chosen)), title="Why this point"),
        _figure(shown, chosen, results),
        _table(shown, results),
        *_pictures(context, shown),
        Code("Use it", f'import fewstep as fs\n\npipe = fs.load("{place}")\nimages = fs.generate(pipe, ...)'),
        Code("Another point of the front", _other(context, shown)),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Command", results["environment"]["command"]),
    ]  # fmt: skip
    summary = (
        f"{results['candidates']} settings meet the budgets, {len(shown)} of them are beaten by no other. Distances: "
        f"features of a picture against those of the reference's picture of the same condition and seed, "
        f"{recipe.evaluation.items} held-out items, 95 % bootstrap intervals."
    )
    return save_page(Page(f"{recipe.model} under budgets", summary, blocks, label="Choice"), run.path / "report.html")


def reasons(context: AutoContext, results: Results, shown: Sequence[Point], chosen: Point) -> list[str]:
    """One sentence for every decision."""
    recipe, costs = context.recipe, results["costs"]
    budgets = [f"{name} {value}" for name, value in (("memory", recipe.memory), ("latency", recipe.latency)) if value]
    kept = "a stored plan or a consistency scheduler, which the network was distilled for"
    found = [
        f"Reference: {context.reference.steps} evaluations in full precision"
        + (f" ({kept})." if context.keeps_solver else " by UniPC."),
        f"Point: the knee of the front{' within ' + ' and '.join(budgets) if budgets else ''}; a cost with a budget "
        "counts no more once it is met.",
        f"Steps and solver: of all plans with {chosen.steps} evaluations, {chosen.plan} is nearest to the reference.",
        f"Bits: a call takes {costs['call'][chosen.scheme]:.3g} ms at {chosen.scheme}"
        + (f" ({costs['call']['none']:.3g} ms in full precision)." if "none" in costs["call"] else "."),
    ]
    found += _added(results)
    if context.reference.stochastic:
        found.append(
            "The reference draws noise between its steps. Plans with fewer steps get the noise that it adds at the "
            "nearest times, so that a picture of theirs is the same draw as far as it can be."
        )
    found += _int8(costs)
    if chosen is shown[0] and len(shown) > 1:
        found.append("No point of the front is nearer to the reference.")
    return found


def _added(results: Results) -> list[str]:
    """Bits per step and Q-Sched, as far as they were tried at the chosen point."""
    row, added, found = results["measured"][results["chosen"]], results["added"], []
    for key, name in (("bits", "Bits per step"), ("q_sched", "Q-Sched")):
        if key not in added:
            continue
        told = added[key]
        gain = told.get("gain")
        change = (
            ""
            if gain is None
            else f"distance changed by {gain['mean']:.3f} ({gain['low']:.3f} to {gain['high']:.3f}) on items of its own"
        )
        if told["kept"]:
            rows = f", rows run {', '.join(told['choice'])}" if "choice" in told else ""
            found.append(f"{name}: {change}{rows}.")
        elif gain is None:
            found.append(f"{name}: {told['reason']}.")
        else:
            found.append(f"{name}: not kept, {change}.")
    if "tuned" in row:
        found.append(f"Together: distance {row['tuned']['mean']:.3f}, {row['distance']['mean']:.3f} without.")
    return found


def _figure(shown: Sequence[Point], chosen: Point, results: Results) -> Block:
    series: dict[str, list[tuple[float, float]]] = {}
    for point, row in zip(shown, results["measured"], strict=True):
        series.setdefault(point.scheme, []).append((row["milliseconds"], row["distance"]["mean"]))
    at = results["measured"][results["chosen"]]
    drawn = figures.trade_off(
        series, chosen=(at["milliseconds"], at["distance"]["mean"]), xlabel="milliseconds per picture",
        ylabel="distance from the reference",
    )  # fmt: skip
    return Figure("The front", drawn, text="Every point is beaten by no other in bytes, time and distance together.")


def _table(shown: Sequence[Point], results: Results) -> Table:
    columns = [
        Column("distance, held out", better="lower"), Column("measured", unit="ms", digits=1), Column("plan"),
        Column("weights", unit="MB", digits=2), Column("predicted", unit="ms", digits=1),
    ]  # fmt: skip
    rows = [
        TableRow(point.name, [row["distance"], row["milliseconds"], point.plan, point.size / 1e6, point.milliseconds],
                 note="chosen" if k == results["chosen"] else "")
        for k, (point, row) in enumerate(zip(shown, results["measured"], strict=True))
    ]  # fmt: skip
    return Table("The points of the front", columns, rows, corner="evaluations x scheme")


def _pictures(context: AutoContext, shown: Sequence[Point]) -> list[Block]:
    """The same held-out items along the front, the reference first; nothing for videos."""
    count = min(context.recipe.evaluation.pictures, context.recipe.evaluation.items)
    if not count:
        return []
    some = context.held_out.pick(range(count))
    with torch.no_grad():
        columns = {"reference": some.draw(context.sampler(), context.reference).cpu()}
        for point in shown[:8]:
            models = context.low(point.scheme, point.parts)
            columns[point.name] = some.draw(context.sampler(**models), context.plan_named(point.plan)).cpu()
    if any(images.ndim != 4 for images in columns.values()):
        return []
    names = [str(c) for c in some.conditions] if some.conditions is not None else [f"seed {s}" for s in some.seeds]
    images = [[column[i].clamp(0, 1) for column in columns.values()] for i in range(count)]
    return [ImageGrid("Equal seeds along the front", images, names, list(columns))]


def _int8(costs: Mapping[str, Any]) -> list[str]:
    """What int8 codes beside packed ones change, and why where they change nothing."""
    pairs = [(s, s.removesuffix(RESIDENT)) for s in costs["call"] if s.endswith(RESIDENT)]
    return [
        f"Codes of {packed}: kept as int8 a call takes {costs['call'][kept] / costs['call'][packed]:.2f} times as long "
        f"as packed, for {(costs['size'][kept] - costs['size'][packed]) / 1e6:.3g} MB more"
        + ("." if native.available() else ": this processor has no exact int8 product, so the codes are not used.")
        for kept, packed in pairs
        if costs["call"].get(packed)
    ]


def _bits(scheme: str) -> str:
    """Options of `fewstep quantize`."""
    if scheme.startswith(MIXED):
        return f"--effective-bits {scheme.removeprefix(MIXED).strip()}"
    return f"--scheme {scheme.removesuffix(RESIDENT)}" + " --resident int8" * scheme.endswith(RESIDENT)


def _other(context: AutoContext, shown: Sequence[Point]) -> str:
    """How each point is made by single commands."""
    model, lines = context.recipe.model, []
    for k, point in enumerate(shown):
        plan = context.run.artifact(f"front/{k}.json")
        if point.scheme == "none":
            lines.append(f"fewstep generate --model {model} --plan {plan}    # {point.name}")
        else:
            lines.append(f"fewstep quantize {model} {_bits(point.scheme)} --out runs/point-{k}    # {point.name}")
    return "\n".join(lines)
