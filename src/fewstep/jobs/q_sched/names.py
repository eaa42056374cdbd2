"""The systems that a Q-Sched run compares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FULL, FULL_TUNED = "full precision", "full precision, tuned"
LOW, LOW_FITTED, LOW_TUNED = "quantized", "quantized + least squares", "quantized + Q-Sched"
TEACHER = "teacher"
SYSTEMS = (FULL, FULL_TUNED, LOW, LOW_FITTED, LOW_TUNED)
LOW_CORRECTED = "quantized + PTQD"
WEIGHTS = {"svdquant": "SVDQuant", "mixdq": "MixDQ"}
"""Other ways to spend the bytes of the quantized weights, which Q-Sched can follow too."""


def then_tuned(name: str) -> str:
    """The name of a system's twin after Q-Sched."""
    return f"{name} + Q-Sched"


def beside(model: str) -> str:
    """The name of another pipeline, quantized, in the tables."""
    return f"{model}, quantized"


def systems_of(evaluation: Mapping[str, Any]) -> list[str]:
    """What was compared, in the order of the tables; the teacher has a row of its own."""
    return [*SYSTEMS, *(name for name in evaluation["systems"] if name not in (*SYSTEMS, TEACHER))]


def plain(name: str) -> str:
    """The name of a system as part of a file name; that of another pipeline may be a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")
