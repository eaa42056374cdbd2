"""A plan as a small table for people."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fewstep.plan import Coefficient, Plan
from fewstep.report.blocks import Column, Table, TableRow


def plan_table(plan: Plan, title: str = "Plan", text: str = "") -> Table:
    """One line per row: times, noise level, how far back it looks, and Q-Sched's scalars (1 = unchanged)."""
    columns = [
        Column("time", digits=1, note="what the network is told"),
        Column("α", digits=4, note="signal"),
        Column("σ", digits=4, note="noise"),
        Column("x coefficients", note="on the states, newest first"),
        Column("n coefficients", note="on the raw network outputs, newest first"),
        Column("noise", digits=4, note="fresh noise added"),
        Column("s", digits=4, note="Q-Sched: scale of the state"),
        Column("m", digits=4, note="Q-Sched: scale of the network output"),
    ]
    rows = [
        TableRow(
            f"{k}" + (f" ({row.network})" if row.network != "main" else ""),
            [
                *(_number(c) for c in (row.network_time, row.alpha, row.sigma)),
                _history(row.state),
                _history(row.output),
                *(_number(c) for c in (row.noise, row.sample_scale, row.output_scale)),
            ],
        )
        for k, row in enumerate(plan.rows)
    ]
    return Table(title, columns, rows, text=text, corner="row")


def _history(coefficients: Mapping[int, Coefficient]) -> str:
    items = sorted(coefficients.items(), reverse=True)
    return "  ".join(_text(value) for _, value in items)


def _number(value: Coefficient) -> float | str:
    return _text(value) if isinstance(value, Tensor) and value.ndim else float(value)


def _text(value: Coefficient) -> str:
    if isinstance(value, Tensor) and value.ndim:
        return f"{float(value.min()):.4f}…{float(value.max()):.4f}"
    return f"{float(value):+.4f}"
