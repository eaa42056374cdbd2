"""Non-linear treatments of the data estimate, which a row names as `name:limit`."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fewstep.errors import PlanError, nearest

Treatment = Callable[[Tensor], Tensor]
"""Data estimate (B, ...) -> the treated one."""

HOOKS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clip_sample": lambda data, limit: data.clamp(-limit, limit),
}
"""Treatments by the name before the colon, with the limit behind it (1 if left out)."""


def treatment(hook: str, place: str = "hook") -> Treatment:
    """What a hook does.

    Raises:
        PlanError: an unknown name, or a limit that is not a positive number.
    """
    name, _, written = hook.partition(":")
    if name not in HOOKS:
        raise PlanError(f"{place} is unknown", value=hook, hint=nearest(name, HOOKS))
    try:
        limit = float(written or 1.0)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise PlanError(f"{place} needs a positive limit", value=hook, hint=f"Write {name}:1.0, for instance.")
    return lambda data: HOOKS[name](data, limit)
