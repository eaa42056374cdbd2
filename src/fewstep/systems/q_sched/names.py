"""The systems that a Q-Sched run compares, and the models it names."""

from __future__ import annotations

from fewstep.models import SHIPPED, shipped

FULL, FULL_TUNED = "full precision", "full precision, tuned"
LOW, LOW_FITTED, LOW_TUNED = "quantized", "quantized + least squares", "quantized + Q-Sched"
TEACHER = "teacher"
SYSTEMS = (FULL, FULL_TUNED, LOW, LOW_FITTED, LOW_TUNED)


def place(spec: str) -> str:
    """A spec such as `clip:emoji-judge` with the shipped model's name replaced by its folder."""
    kind, _, name = spec.partition(":")
    return f"{kind}:{shipped(name)}" if name in SHIPPED else spec


def plain(name: str) -> str:
    """The name of a system as part of a file name."""
    return name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
