"""What ways of tuning a few-step student win and break, from results/align.json."""

from __future__ import annotations

from statistics import fmean
from typing import Any

NAMES = {
    "reward": ("reward", 3),
    "frechet": ("Fréchet distance", 2),
    "recall": ("recall", 2),
    "right": ("right class", 3),
    "spread": ("spread within classes", 2),
    "sharp": ("sharpness", 2),
}


def _cell(values: list[float], decimals: int) -> str:
    """Mean and half the range over seeds."""
    return f"{fmean(values):.{decimals}f} ± {(max(values) - min(values)) / 2:.{decimals}f}"


def table(results: dict[str, Any]) -> str:
    """Arms by metrics, at the end of their budgets."""
    rows = {"untouched": ("–", "–", list(results["untouched"].values()))}
    for name, arm in results["arms"].items():
        ends = list(arm["seeds"].values())
        rows[name] = (f"{arm['rate']:g}", f"{fmean(end['updates'] for end in ends):.0f}", ends)
    lines = ["| arm | rate | updates | " + " | ".join(label for label, _ in NAMES.values()) + " |"]
    lines.append("|---" * (3 + len(NAMES)) + "|")
    for name, (rate, updates, ends) in rows.items():
        cells = [_cell([end[metric] for end in ends], decimals) for metric, (_, decimals) in NAMES.items()]
        lines.append(f"| {name} | {rate} | {updates} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
