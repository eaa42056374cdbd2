"""What the benchmark of reward-directed sampling says in words."""

from __future__ import annotations

from typing import Any


def row(arm: dict[str, Any], keys: list[str], digits: int = 2) -> str:
    """Cells of a table: mean and half of the interval."""
    return " | ".join(f"{arm[k]['mean']:.{digits}f} ± {(arm[k]['high'] - arm[k]['low']) / 2:.{digits}f}" for k in keys)


def nearest(arms: dict[str, Any], key: str = "frechet") -> str:
    """The arm of the least value."""
    return min(arms, key=lambda name: arms[name][key]["mean"])


def tightness(bound: dict[str, Any]) -> str:
    """The least and the largest part of the bound that the KL reaches, where the score errs."""
    parts = [entry["kl"] / entry["bound"] for error, entry in bound.items() if float(error)]
    return f"{min(parts):.2f} to {max(parts):.2f}"
