"""Measured orders of convergence, from results/convergence.json, for the pages of single papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROOM = 0.25
"""How far below its promise a measured slope may lie and still count as that order."""


def of(rows: list[dict[str, Any]], solvers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these solvers."""
    return [row for row in rows if row["solver"] in solvers]


def title(row: dict[str, Any]) -> str:
    """A solver with its settings and what was changed about it."""
    settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items() if k != "lower_order_final")
    return f"`{row['solver']}` {settings}".strip() + (f" ({row['note']})" if row["note"] else "")


def kept(rows: list[dict[str, Any]]) -> str:
    """How many clean cases reach their order, and which do not."""
    clean = [row for row in rows if not row["note"]]
    short = [row for row in clean if row["slopes"][-1] < row["promised"] - ROOM]
    names = ", ".join(f"`{row['solver']}` {row['slopes'][-1]:.2f} of {row['promised']}" for row in short)
    return f"{len(clean) - len(short)} of {len(clean)} reach their order on the last refinement" + (
        f"; below it: {names}." if short else "."
    )


def find(rows: list[dict[str, Any]], solver: str, note: str, **settings: Any) -> dict[str, Any]:
    """The one row of this solver, note and settings."""
    for row in rows:
        if row["solver"] == solver and row["note"] == note and settings.items() <= row["settings"].items():
            return row
    raise KeyError((solver, note, settings))
