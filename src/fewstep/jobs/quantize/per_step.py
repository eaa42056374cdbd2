"""Bits per row of the plan: some rows with more bits, others with fewer, for the same compute in the mean."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.quant import QuantReport, Scheme
from fewstep.quant.allocation import Allocation, LayerOption, allocate
from fewstep.quant.calls import Call, multiply_adds
from fewstep.quant.mixed import FLOAT, quantize_mixed, quantize_stepped
from fewstep.quant.modules import copy_to_quantize, eligible
from fewstep.quant.remedies import largest_inputs
from fewstep.runs import Run

Tables = dict[str, dict[str, str]]


Draw = Callable[..., Tensor]
"""(network, tables of the rows) -> the latents of the items that are measured; without tables rows run alike."""


def bits_per_step(
    run: Run,
    draw: Draw,
    steps: int,
    call: Call,
    full: nn.Module,
    model: nn.Module,
    report: QuantReport,
    rungs: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[nn.Module, QuantReport, dict[str, Any]]:
    """The backbone with a table of bits per row if that brings the items nearer to full precision.

    Every row is measured at every rung of the ladder with all other rows in full precision; the damages are taken to
    add up, and the integer programme chooses a rung per row under the compute of the one scheme. Its choice is then
    run against that scheme.

    Args:
        run: keeps the measurements.
        draw: what is measured.
        steps: rows of the plan.
        call: one of the network.
        full: the backbone in full precision, with the layers of `model`.
        model: the backbone in one scheme, as the answer stays if rows gain nothing.
        report: of `model`.
        rungs: schemes that rows may get.
        options: of `quantize`.

    Returns:
        Model, report, and what was measured, with `rows`: the table of each row, or nothing if all rows run alike.
    """
    tables = ladder(full, report, rungs)
    names = list(tables)
    if len(names) < 2 or steps < 2:
        return model, report, {"rows": [], "reason": "one row, or no candidate beside the scheme: nothing to choose"}
    options = _smoothed(full, tables, call, options)
    counts = multiply_adds(full, call, list(tables["scheme"]))
    cost = {rung: operations(table, counts) for rung, table in tables.items()}
    truth = draw(full)
    damage = run.unit("sensitivity-rows", lambda: _damages(run, draw, steps, full, tables, truth, options))
    chosen = choose(damage, cost)
    low = copy_to_quantize(full)
    used = [rung for rung in names if rung in chosen]
    found = {"rungs": cost, "damage": damage, "choice": chosen, "rows": [used.index(rung) for rung in chosen]}
    if len(used) == 1:
        return model, report, {**found, "rows": [], "reason": "the same bits for every row are best"}
    stepped = quantize_stepped(low, [tables[rung] for rung in used], **options)
    one, many = (_error(draw(m, r), truth) for m, r in ((model, []), (low, found["rows"])))
    if "more" in tables:
        found["more"] = _uniform(full, tables["more"], draw, truth, options)
    found |= {"error_one": one, "error": many, "bytes": stepped.disk_after, "bytes_one": report.disk_after}
    if many >= one:
        return model, report, {**found, "rows": [], "reason": "measured together it is not better than one scheme"}
    return low, stepped, {**found, "reason": "nearer to full precision than one scheme at the same mean compute"}


def _smoothed(full: nn.Module, tables: Tables, call: Call, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, with what layers see that are smoothed as a remedy (`fewstep.quant.remedies`)."""
    names = {n for table in tables.values() for n, s in table.items() if s != FLOAT and Scheme.parse(s).smooth}
    if not names or options.get("calibration") is not None:
        return options
    return {**options, "calibration": largest_inputs(full, names, [call])}


def around(name: str) -> list[str]:
    """A scheme with inputs of 4, 8 and 16 bit: the same weights, at three prices."""
    scheme = Scheme.parse(name)
    others = [
        dataclasses.replace(
            scheme, activation_bits=bits, activation_format="dynamic",
            activation_group=None if bits == 16 else scheme.activation_group,
        )
        for bits in (4, 8, 16) if bits != scheme.activation_bits
    ]  # fmt: skip
    return [str(scheme), *map(str, others)]


def _uniform(
    full: nn.Module, table: Mapping[str, str], draw: Draw, truth: Tensor, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the highest rung in every row would give: the other use of more bytes."""
    high = copy_to_quantize(full)
    report = quantize_mixed(high, table, **options)
    return {"error": _error(draw(high), truth), "bytes": report.disk_after}


def ladder(full: nn.Module, report: QuantReport, candidates: Sequence[str]) -> Tables:
    """Scheme of every layer on the rungs `fewer`, `scheme` and `more`; rungs that are no other are left out.

    Only layers with the scheme of most weights move: those that rules gave more bits keep them in every row.
    """
    given = {row.name: row.bits if row.quantized else FLOAT for row in report.rows}
    base = {name: given[name] for name in eligible(full)}
    weights: Counter[Scheme] = Counter()
    for row in report.rows:
        if row.quantized and row.name in base:
            weights[_bare(row.bits)] += row.weights
    most = weights.most_common(1)[0][0]
    same_format_last = sorted(map(Scheme.parse, candidates), key=lambda c: c.weight_format == most.weight_format)
    order = sorted({_width(c): c for c in same_format_last}.items())
    fewer = [scheme for width, scheme in order if width < _width(most)]
    more = [scheme for width, scheme in order if width > _width(most)]
    found: Tables = {}
    for rung, choice in (("fewer", fewer[-1:]), ("scheme", [most]), ("more", more[:1])):
        if choice:
            found[rung] = {n: _moved(b, choice[0]) if b != FLOAT and _bare(b) == most else b for n, b in base.items()}
    return found


def _bare(name: str) -> Scheme:
    """A scheme without what a method added to it, layer by layer."""
    return dataclasses.replace(Scheme.parse(name), smooth=False, rank=0)


def _moved(name: str, scheme: Scheme) -> str:
    own = Scheme.parse(name)
    return str(dataclasses.replace(scheme, smooth=own.smooth, rank=own.rank))


def choose(damage: Mapping[str, Sequence[float]], cost: Mapping[str, int]) -> list[str]:
    """The rung of each row: least sum of damages, with no more bit operations than `scheme` in every row."""
    rows = len(damage["scheme"])
    options = {
        str(k): [LayerOption(rung, cost[rung], values[k]) for rung, values in damage.items()] for k in range(rows)
    }
    found: Allocation = allocate(options, rows * cost["scheme"])
    return [found.choice[str(k)].scheme for k in range(rows)]


def operations(table: Mapping[str, str], counts: Mapping[str, int]) -> int:
    """Bit operations of one call: multiply-adds times weight bits times activation bits; float counts as 16."""
    widths = {scheme: 256 if scheme == FLOAT else _width(Scheme.parse(scheme)) for scheme in set(table.values())}
    return sum(counts[name] * widths[scheme] for name, scheme in table.items())


def _damages(
    run: Run, draw: Draw, steps: int, full: nn.Module, tables: Tables, truth: Tensor, options: Mapping[str, Any]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with run.progress("rows", total=len(tables) * steps) as advance:
        for rung, table in tables.items():
            low = copy_to_quantize(full)
            quantize_stepped(low, [dict.fromkeys(table, FLOAT), table], **options)
            found[rung] = []
            for k in range(steps):
                found[rung].append(_error(draw(low, [int(j == k) for j in range(steps)]), truth))
                advance(1, note=f"{rung}, row {k}")
    return found


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean())


def _width(scheme: Scheme) -> int:
    return scheme.weight_bits * scheme.activation_bits
