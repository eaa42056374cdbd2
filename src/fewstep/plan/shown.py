"""The rows of a plan as a table for people; columns that would say the same in every row are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fewstep.plan.combination import Coefficient
from fewstep.plan.row import Row, said
from fewstep.shown import WIDTH, text_table

MOST = 12
"""Rows that are shown before those in the middle are left out."""


def rows_as_text(rows: Sequence[Row]) -> str:
    """A table for a terminal: as many coefficients as fit, the newest first."""
    tables = (text_table(*rows_as_cells(rows, terms), width=1000) for terms in (4, 3, 2, 1))
    for table in tables:
        if max(map(len, table.splitlines())) <= WIDTH:
            return table
    return text_table(*rows_as_cells(rows, 1))


def rows_as_cells(rows: Sequence[Row], terms: int = 8) -> tuple[list[str], list[list[str]]]:
    """Header and cells; at most `terms` coefficients in one."""
    columns = {
        "time": [said(row.network_time) for row in rows],
        "alpha": [said(row.alpha) for row in rows],
        "sigma": [said(row.sigma) for row in rows],
        "of states": [_newest(row.state, terms) for row in rows],
        "of outputs": [_newest(row.output, terms) for row in rows],
        **{name: [said(getattr(row, name)) for row in rows] for name in _usual if not _is_usual(rows, name)},
    }
    shown: list[int | None] = list(range(len(rows)))
    if len(rows) > MOST:
        shown[MOST // 2 : -MOST // 2] = [None]
    header = ["row", *(_LABELS.get(name, name) for name in columns)]
    return header, [
        ["..."] * len(header) if k is None else [str(k), *(values[k] for values in columns.values())] for k in shown
    ]


_usual: Mapping[str, object] = {
    "noise": 0.0, "anchor": 0.0, "offset": 0.0, "input_scale": 1.0, "sample_scale": 1.0, "output_scale": 1.0,
    "network": "main", "guidance": None, "hook": None,
}  # fmt: skip
_LABELS = {"sample_scale": "s", "output_scale": "m", "input_scale": "input"}


def _is_usual(rows: Sequence[Row], name: str) -> bool:
    values = [getattr(row, name) for row in rows]
    return not any(isinstance(value, Tensor) or value != _usual[name] for value in values)


def _newest(coefficients: Mapping[int, Coefficient], terms: int) -> str:
    items = sorted(coefficients.items(), reverse=True)
    return " ".join([said(c, "+") for _, c in items[:terms]] + ["..."] * (len(items) > terms))
