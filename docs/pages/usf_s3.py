"""What the numbers say of USF and S3."""

from __future__ import annotations

from typing import Any


def holds(rows: dict[str, Any]) -> list[str]:
    """Evaluations at which the searched schedule is better than the best uniform solver on another mixture."""
    return [n for n, s in rows.items() if s["everything"]["shifted"]["mean"] < s["uniform"]["shifted"]["mean"]]


def errors(rows: dict[str, Any], name: str) -> list[float]:
    """Final errors of a search, all runs."""
    return [value for systems in rows.values() for value in systems[name]["search"]["values"]]
