"""Whether the costs of a distillation meet their targets."""

from __future__ import annotations

from typing import Any

SPEED, MEMORY = 0.95, 1.25
"""Targets: images per second as a share of a plain loop's, memory as a multiple of plain LoRA fine-tuning's."""


def speed(ratio: dict[str, Any]) -> str:
    """Of images per second to those of the other loop."""
    return "met" if ratio["low"] >= SPEED else "missed" if ratio["high"] < SPEED else "within the interval"


def memory(of_plain: float) -> str:
    """Of the peak to that of plain fine-tuning; nothing for that itself."""
    return "" if of_plain == 1 else "met" if of_plain <= MEMORY else "missed"


def words(rows: list[dict[str, Any]]) -> str:
    """Who misses, and what of it is known."""
    missed = [row for row in rows if row["of_plain"] > MEMORY]
    if not missed:
        return "All cases meet the target."
    names = ", ".join(sorted({row["case"] for row in missed}))
    return (
        f"Beyond the target: {names}. The losses of an update are added before the one backward pass, so the graphs\n"
        "of the critic's denoising and of the adversary's looks at the critic lie in memory together, and in the\n"
        "student's update those of the roll-out and of the critic. Which makes the peak was not measured."
    )
