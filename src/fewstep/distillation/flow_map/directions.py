"""Directions: clean predictions whose velocity says where a trajectory goes at the start of a jump.

A direction is called with (networks, jump, states x (B, ...), times (B,)) and returns a clean prediction (B, ...)
without gradient and the forward passes it took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import column
from fewstep.distillation.flow_map.jump import Jump
from fewstep.errors import FewstepError

VelocitySource = Callable[[Networks, Jump, Tensor, Tensor], tuple[Tensor, int]]


def data_velocity(networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
    """The data point itself: one sample of the velocity, unbiased and noisy (flow matching, MeanFlow)."""
    return jump.known("clean"), 0


def teacher_velocity(networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
    """The teacher, guided as the jump says."""
    return jump.teach(networks.teacher, x, t)


def student_velocity(networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
    """The student's own diagonal u(x, t, t) (improved MeanFlow, arXiv 2512.02012; self-distillation, 2505.18825)."""
    return jump.ask(networks.student, x, t, t), 1


@dataclass(frozen=True)
class SelfGuidedVelocity:
    """MeanFlow's guidance: omega v + (1 - omega - kappa) u(x, t, t | nothing) + kappa u(x, t, t | c).

    Effective scale omega / (1 - kappa); plain v at times outside of the fractions `interval` of the range (arXiv
    2505.13447, eq. 20-21; omega and kappa as there).
    """

    omega: float = 1.0
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    inner: VelocitySource = data_velocity

    def __call__(self, networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        """Clean prediction.

        Raises:
            FewstepError: the batch has no negative condition.
        """
        plain, passes = self.inner(networks, jump, x, t)
        if jump.condition is None:
            return plain, passes
        within, without = networks.student.both(x, t, jump.condition, jump.negative)
        guided = self.omega * plain + (1 - self.omega - self.kappa) * without + self.kappa * within
        low, high = (part * networks.student.process.noisiest for part in self.interval)
        inside = column(((t >= low) & (t <= high)).double(), x) > 0
        return torch.where(inside, guided, plain), passes + 2


@dataclass(frozen=True)
class MixedVelocity:
    """(1 - share) first + share second: trades the variance of data against the bias of a teacher."""

    first: VelocitySource
    second: VelocitySource
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise FewstepError("the share of a direction lies in [0, 1]", value=self.share)

    def __call__(self, networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        """Clean prediction."""
        (a, used), (b, more) = (direction(networks, jump, x, t) for direction in (self.first, self.second))
        return (1 - self.share) * a + self.share * b, used + more
