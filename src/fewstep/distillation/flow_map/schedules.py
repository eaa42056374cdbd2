"""Numbers that change as training goes on: functions of (step, steps), steps counted from 0."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.distillation.core import Batch
from fewstep.distillation.part import part

Schedule = Callable[[int, int], float]
"""(number of this step, number of all steps) -> value."""

Varying = float | Schedule
"""A number, or a schedule of one."""


def value_at(number: Varying, batch: Batch) -> float:
    """The number at the step of a batch."""
    return float(number(batch.step, batch.steps)) if callable(number) else float(number)


@part
def ramp(start: float, end: float, first: float = 0.0, last: float = 1.0) -> Schedule:
    """Straight from `start` to `end` over the share (first, last) of the training, constant outside."""

    def value(step: int, steps: int) -> float:
        done = (step / max(1, steps) - first) / max(last - first, 1e-12)
        return start + (end - start) * min(1.0, max(0.0, done))

    return value


@part
def halving(start: float, every: int, least: float = 1.0) -> Schedule:
    """`start`, halved after every `every` steps and never below `least`: grids of progressive distillation."""

    def value(step: int, steps: int) -> float:
        return max(least, start * 0.5 ** (step // every))

    return value


@part
def switch(before: float, after: float, stop: int) -> Schedule:
    """`before` for the first `stop` steps, then `after`."""

    def value(step: int, steps: int) -> float:
        return before if step < stop else after

    return value
