"""What the student's jump should give: discrete targets of one or two legs, and instantaneous velocities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.directions import VelocitySource, data_velocity
from fewstep.distillation.flow_map.frame import Space
from fewstep.distillation.flow_map.jump import Jump
from fewstep.distillation.flow_map.legs import Leg, StudentJump
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class TargetValue:
    """The wanted value (B, ...), the space it lives in, and the forward passes that it took."""

    value: Tensor
    space: Space
    passes: int


JumpTarget = Callable[[Networks, Jump, Tensor], TargetValue]
"""Called with (networks, jump, the student's clean prediction (B, ...) without gradient), under `no_grad`."""


@dataclass(frozen=True)
class TwoLeg:
    """y* = Leg2(Leg1(x_t; t -> m); m -> s): the state that two shorter legs reach; no second leg where m = s.

    Solver + Student: consistency distillation, PCM, CTM, MLCM. SameNoise + Student: consistency training, alpha-Flow.
    Solver + Solver: progressive distillation. Student + Student: shortcut. Stored: regression to stored states.
    """

    first: Leg
    second: Leg | None = None

    def __call__(self, networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        """The state at s.

        Raises:
            FewstepError: two legs, and jumps without a middle.
        """
        if self.second is None:
            end, used = self.first(networks, jump, jump.x, jump.t, jump.s)
            return TargetValue(end, "state", used)
        if jump.times.m is None:
            raise FewstepError("a target of two legs needs jumps with a middle", hint="Give the intervals a middle.")
        middle, used = self.first(networks, jump, jump.x, jump.t, jump.times.m)
        end, more = self.second(networks, jump, middle, jump.times.m, jump.s)
        return TargetValue(end, "state", used + more)


def semigroup(who: str = "target") -> TwoLeg:
    """X_{s,t} = X_{s,m} o X_{m,t}: needs an anchor at s = t beside it, or the identity solves it (arXiv 2507.16884)."""
    return TwoLeg(StudentJump(who), StudentJump(who))


@dataclass(frozen=True)
class InstantaneousVelocity:
    """The velocity of a direction at t: flow matching, reflow, regression to a teacher; belongs to jumps with s = t."""

    direction: VelocitySource = data_velocity

    def __call__(self, networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        """The clean prediction at t."""
        clean, passes = self.direction(networks, jump, jump.x, jump.t)
        return TargetValue(clean, "clean", passes)
