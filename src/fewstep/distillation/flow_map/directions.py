"""Directions: clean predictions whose velocity says where a trajectory goes at the start of a jump.

A direction is called with (networks, jump, states x (B, ...), times (B,)) and returns a clean prediction (B, ...)
without gradient and the forward passes it took.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import column
from fewstep.distillation.flow_map.jump import Jump
from fewstep.distillation.part import part
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


@part
def self_guided_velocity(
    omega: float = 1.0,
    kappa: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    inner: VelocitySource = data_velocity,
) -> VelocitySource:
    """MeanFlow's guidance: omega v + (1 - omega - kappa) u(x, t, t | nothing) + kappa u(x, t, t | c).

    Effective scale omega / (1 - kappa); plain v at times outside of the fractions `interval` of the range (arXiv
    2505.13447, eq. 20-21; omega and kappa as there).

    Args:
        omega: weight of v.
        kappa: weight of the student with its condition.
        interval: fractions of the range in which it acts.
        inner: v.
    """

    def velocity(networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        plain, passes = inner(networks, jump, x, t)
        if jump.condition is None:
            return plain, passes
        within, without = networks.student.both(x, t, jump.condition, jump.negative)
        guided = omega * plain + (1 - omega - kappa) * without + kappa * within
        low, high = (share * networks.student.process.noisiest for share in interval)
        inside = column(((t >= low) & (t <= high)).double(), x) > 0
        return torch.where(inside, guided, plain), passes + 2

    return velocity


@part
def mixed_velocity(first: VelocitySource, second: VelocitySource, share: float = 0.5) -> VelocitySource:
    """(1 - share) first + share second: trades the variance of data against the bias of a teacher.

    Raises:
        FewstepError: a share outside of [0, 1].
    """
    if not 0 <= share <= 1:
        raise FewstepError("the share of a direction lies in [0, 1]", value=share)

    def velocity(networks: Networks, jump: Jump, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        (a, used), (b, more) = (direction(networks, jump, x, t) for direction in (first, second))
        return (1 - share) * a + share * b, used + more

    return velocity
