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


ADVICE = {
    "PSO online": "any score of pictures, and sharpness and recall must stay",
    "GRPO": "any score of pictures, and more of it for some distance",
    "PSO offline": "pairs of pictures (votes)",
    "DPO": "pairs, and as little change as can be",
    "ReFL": "a differentiable reward that has an end; without one it leaves the data",
    "joint 1:1, PSO": "the teacher too, and a long training (see above); in a short one no gain over PSO alone",
    "fine-tuning on the best half": "never, for a few-step student",
}
"""What each arm is for."""


def advice(results: dict[str, Any]) -> str:
    """What you have, the arm for it, and what it changed: means over seeds, against the untouched student."""
    before = list(results["untouched"].values())

    def change(ends: list[dict[str, float]], metric: str) -> float:
        return fmean(e[metric] for e in ends) - fmean(b[metric] for b in before)

    lines = ["| you have | method | reward | Fréchet distance | recall | sharpness |", "|---|---|---|---|---|---|"]
    for name, use in ADVICE.items():
        ends = list(results["arms"][name]["seeds"].values())
        changes = [change(ends, metric) for metric in ("reward", "frechet", "recall", "sharp")]
        cells = [f"{value:+.2f}" if abs(value) < 100 else f"{value:+.0e}" for value in changes]
        lines.append(f"| {use} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(results: dict[str, Any]) -> str:
    """Reinforcement alone and beside distillation at the quarters of the budget, of results/align-ratios.json."""
    before = list(results["untouched"].values())
    lines = [
        "| rewards : distillation | updates | reward | Fréchet distance | recall | right class |",
        "|" + "---|" * 6,
    ]

    def row(name: str, updates: str, points: list[dict[str, float]]) -> str:
        cells = [f"{fmean(p[m] for p in points):.4g}" for m in ("reward", "frechet", "recall", "right")]
        return f"| {name} | {updates} | " + " | ".join(cells) + " |"

    lines.append(row("untouched", "0", before))
    for name, seeds in results["arms"].items():
        curves = [one["curve"] for one in seeds.values()]
        lines += [row(name, str(points[0]["updates"]), list(points)) for points in zip(*curves, strict=True)]
    return "\n".join(lines)
