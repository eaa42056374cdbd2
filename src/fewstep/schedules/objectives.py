"""What a schedule is searched for: to end where a teacher ends, or to look like it as a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics.distances import RbfKernel, frechet, mmd2, mmd2_draws
from fewstep.plan import Plan
from fewstep.schedules.tuning.problem import Ahead

Generate = Callable[[Plan, Sequence[int]], Tensor]
"""(plan, items) -> final states or images (n, ...), item by item the same noise and condition for every plan. One that
several processes share has `ahead`, see `fewstep.schedules.tuning.Objective`."""


@dataclass
class TeacherMatch:
    """Minus the distance from the teacher's result of the same noise and condition, per item, unit-free.

    target: the teacher's results (N, ...); the distance is the root mean square difference over the target's own
    standard deviation. Differentiable when gradients are enabled.
    """

    generate: Generate
    target: Tensor
    per_item: bool = field(default=True, init=False)

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.target)

    @property
    def ahead(self) -> Ahead | None:
        """Of `generate`."""
        return getattr(self.generate, "ahead", None)

    @cached_property
    def _unit(self) -> float:
        return float(self.target.std())

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """Scores (n,), at most 0."""
        ours = self.generate(plan, items)
        away = (ours - self.target[list(items)].to(ours)).flatten(1)
        return -((away.square().mean(1) + 1e-12).sqrt() / self._unit)


@dataclass
class DistributionMatch:
    """Minus the distance of features from those of a reference set: for stochastic plans, and AutoDiffusion.

    features: images or states (n, ...) -> (n, F); reference: (M, F). One number for the set, not differentiable here.
    distance: `frechet`, or `mmd`: the unbiased squared MMD, whose mean does not depend on the number of items, so that
    a search may look at few of them first.
    """

    generate: Generate
    features: Callable[[Tensor], Tensor]
    reference: Tensor
    count: int
    distance: Literal["frechet", "mmd"] = "frechet"
    per_item: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if min(self.count, len(self.reference)) < (8 if self.distance == "frechet" else 2):
            what = "a Fréchet distance needs at least eight samples on both sides, an MMD two"
            raise FewstepError(what, value=(self.count, len(self.reference)), hint="Add prompts or seeds.")

    @property
    def size(self) -> int:
        """Number of items."""
        return self.count

    @property
    def ahead(self) -> Ahead | None:
        """Of `generate`."""
        return getattr(self.generate, "ahead", None)

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """One score ()."""
        ours, theirs = self.features(self.generate(plan, items)).double(), self.reference.double()
        return torch.tensor(-frechet(ours, theirs) if self.distance == "frechet" else -mmd2(ours, theirs, self.kernel))

    @cached_property
    def kernel(self) -> RbfKernel:
        """Of the MMD: its widths are those of the reference."""
        return RbfKernel.of(self.reference)

    def resampled(self, plan: Plan, items: Sequence[int], counts: Tensor) -> tuple[float, Tensor]:
        """The score by MMD of all these items, and of resamples of them: counts (B, n) -> (B,)."""
        ours = self.features(self.generate(plan, items)).double()
        estimate, draws = mmd2_draws(ours, self.reference.double(), self.kernel, counts)
        return -estimate, -draws
