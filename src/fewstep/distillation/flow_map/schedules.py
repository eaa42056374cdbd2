"""Numbers that change as training goes on: functions of (step, steps), steps counted from 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.distillation.core import Batch

Schedule = Callable[[int, int], float]
"""(number of this step, number of all steps) -> value."""

Varying = float | Schedule
"""A number, or a schedule of one."""


def value_at(number: Varying, batch: Batch) -> float:
    """The number at the step of a batch."""
    return float(number(batch.step, batch.steps)) if callable(number) else float(number)


@dataclass(frozen=True)
class Ramp:
    """Straight from `start` to `end` over the share (first, last) of the training, constant outside."""

    start: float
    end: float
    first: float = 0.0
    last: float = 1.0

    def __call__(self, step: int, steps: int) -> float:
        """The value."""
        done = (step / max(1, steps) - self.first) / max(self.last - self.first, 1e-12)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, done))


@dataclass(frozen=True)
class Halving:
    """`start`, halved after every `every` steps and never below `least`: grids of progressive distillation."""

    start: float
    every: int
    least: float = 1.0

    def __call__(self, step: int, steps: int) -> float:
        """The value."""
        return max(self.least, self.start * 0.5 ** (step // self.every))


@dataclass(frozen=True)
class Switch:
    """`before` for the first `stop` steps, then `after`."""

    before: float
    after: float
    stop: int

    def __call__(self, step: int, steps: int) -> float:
        """The value."""
        return self.before if step < self.stop else self.after
