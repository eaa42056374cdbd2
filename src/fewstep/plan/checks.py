"""What a plan may hold: every check that its construction makes, each naming the place."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan.combination import Coefficient, number

MOST_ROWS = 10_000
"""Rows of a plan at most: ten times the training steps of any published model."""
MOST_AXES = 8
"""Axes of a tensor coefficient at most (a video has four)."""


def coefficient(name: str, value: Coefficient) -> None:
    """Refuse what is no number or tensor of numbers, is empty, or is not finite (PlanError)."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise PlanError(f"{name} must hold numbers", value=value.dtype, hint="Use a float tensor.")
        if not value.numel() or value.ndim > MOST_AXES:
            hint = f"It needs at least one number, and at most {MOST_AXES} axes."
            raise PlanError(f"{name} has no usable shape", value=tuple(value.shape), hint=hint)
        finite = bool(value.isfinite().all())
    else:
        plain_number(name, value)
        finite = math.isfinite(value)
    if not finite:
        raise PlanError(f"{name} is not finite", value=value, hint="Check the time grid for duplicates and ends.")


def one_number(name: str, value: Coefficient, *, least: float = -math.inf) -> None:
    """Refuse what is not a single finite number, or is below `least` (PlanError)."""
    coefficient(name, value)
    if isinstance(value, Tensor) and value.numel() != 1:
        hint = "Only coefficients may be tensors."
        raise PlanError(f"{name} must be one number", value=tuple(value.shape), hint=hint)
    if number(value) < least:
        hint = "Scales of signal and noise are sizes."
        raise PlanError(f"{name} must not be negative", value=number(value), hint=hint)


def scale(name: str, value: Coefficient) -> None:
    """Refuse a standard deviation that is not positive (PlanError)."""
    one_number(name, value)
    if not number(value) > 0:
        hint = "It is the standard deviation of the first state."
        raise PlanError(f"{name} must be positive", value=number(value), hint=hint)


def plain_number(name: str, value: Any) -> None:
    """Refuse what Python would count as a number, or read as one, and is none: truth values and text (PlanError)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise PlanError(f"{name} must be a number", value=value, hint="Write it without quotes, as 0.5.")


def guidance(name: str, value: float | None) -> None:
    """Refuse a guidance scale that is not a finite number (PlanError)."""
    if value is None:
        return
    plain_number(name, value)
    if not math.isfinite(value):
        raise PlanError(f"{name} must be finite", value=value, hint="1 is without guidance.")


def text(name: str, value: Any) -> None:
    """Refuse what cannot be written as text: other kinds, and lone surrogates (PlanError)."""
    if not isinstance(value, str):
        raise PlanError(f"{name} must be text", value=value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PlanError(f"{name} holds what is no text ({error.reason})", value=value) from error


def plain_values(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as a plan file gives it back.

    Raises:
        PlanError: a value that JSON cannot hold.
    """
    try:
        written = json.dumps(value, allow_nan=False, ensure_ascii=False)
        written.encode()
        again = json.loads(written)
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        hint = "Keep to text, finite numbers, lists and mappings."
        raise PlanError(f"{name} cannot be written to a plan file ({error})", hint=hint) from error
    if not isinstance(again, dict):
        raise PlanError(f"{name} must be a mapping", value=value)
    return again


def indices(name: str, table: Mapping[int, Coefficient], k: int) -> None:
    """Refuse a row that reads what is not yet made (PlanError)."""
    for j in table:
        if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j <= k:
            raise PlanError(f"{name} may refer to entries 0 to {k}", value=j, hint="Row k sees no later state.")
