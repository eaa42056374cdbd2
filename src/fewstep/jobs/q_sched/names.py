"""The systems that a Q-Sched run compares."""

from __future__ import annotations

FULL, FULL_TUNED = "full precision", "full precision, tuned"
LOW, LOW_FITTED, LOW_TUNED = "quantized", "quantized + least squares", "quantized + Q-Sched"
TEACHER = "teacher"
SYSTEMS = (FULL, FULL_TUNED, LOW, LOW_FITTED, LOW_TUNED)


def plain(name: str) -> str:
    """The name of a system as part of a file name."""
    return name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
