"""What the student's jump should give: discrete targets of one or two legs, and instantaneous velocities."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.directions import VelocitySource, data_velocity
from fewstep.distillation.flow_map.frame import Space
from fewstep.distillation.flow_map.jump import Jump
from fewstep.distillation.flow_map.legs import Leg, student_jump
from fewstep.distillation.part import part
from fewstep.errors import FewstepError

TargetValue = tuple[Tensor, Space, int]
"""The wanted value (B, ...), the space it lives in, and the forward passes that it took."""

JumpTarget = Callable[[Networks, Jump, Tensor], TargetValue]
"""Called with (networks, jump, the student's clean prediction (B, ...) without gradient), under `no_grad`."""


@part
def two_leg(first: Leg, second: Leg | None = None) -> JumpTarget:
    """y* = Leg2(Leg1(x_t; t -> m); m -> s): the state that two shorter legs reach; no second leg where m = s.

    Teacher's step + student's jump: consistency distillation, PCM, CTM, MLCM. Same noise + student: consistency
    training, alpha-Flow. Teacher + teacher: progressive distillation. Student + student: shortcut. Stored: regression.

    Args:
        first: from t to m, or to s where there is no second.
        second: from m to s.

    Raises:
        FewstepError: when called: two legs, and jumps without a middle.
    """

    def target(networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        if second is None:
            end, used = first(networks, jump, jump.x, jump.t, jump.s)
            return end, "state", used
        if jump.times.m is None:
            hint = "Give the times of the jumps a middle."
            raise FewstepError("a target of two legs needs jumps with a middle", hint=hint)
        middle, used = first(networks, jump, jump.x, jump.t, jump.times.m)
        end, more = second(networks, jump, middle, jump.times.m, jump.s)
        return end, "state", used + more

    return target


def semigroup(who: str = "target") -> JumpTarget:
    """X_{s,t} = X_{s,m} o X_{m,t}: needs an anchor at s = t beside it, or the identity solves it (arXiv 2507.16884)."""
    return two_leg(student_jump(who), student_jump(who))


@part
def instantaneous_velocity(direction: VelocitySource = data_velocity) -> JumpTarget:
    """The velocity of a direction at t: flow matching, reflow, regression to a teacher; belongs to jumps with s = t."""

    def target(networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        clean, passes = direction(networks, jump, jump.x, jump.t)
        return clean, "clean", passes

    return target
