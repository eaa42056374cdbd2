"""What a schedule is searched for: to end where a teacher ends, or to look like it as a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics.distances import frechet
from fewstep.plan import Plan

Generate = Callable[[Plan, Sequence[int]], Tensor]
"""(plan, items) -> final states or images (n, ...), item by item the same noise and condition for every plan."""


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
    """Minus the Fréchet distance of features from those of a reference set: for stochastic plans, and AutoDiffusion.

    features: images or states (n, ...) -> (n, F); reference: (M, F). One number for the set, not differentiable here.
    """

    generate: Generate
    features: Callable[[Tensor], Tensor]
    reference: Tensor
    count: int
    per_item: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.count < 8 or len(self.reference) < 8:
            what = "a Fréchet distance needs at least eight samples on both sides"
            raise FewstepError(what, value=(self.count, len(self.reference)), hint="Add prompts or seeds.")

    @property
    def size(self) -> int:
        """Number of items."""
        return self.count

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """One score ()."""
        ours = self.features(self.generate(plan, items))
        return torch.tensor(-frechet(ours.double(), self.reference.double()))
