"""Limits of short legs: residuals of the two differential equations of a flow map, read as velocity targets.

A residual R has the units of a velocity; the target is u* = u - R with u the student's own velocity, so its fixed point
is R = 0 and the gradient of the square is R du (arXiv 2505.13447 writes the same with s and t on the straight path).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.directions import VelocitySource, teacher_velocity
from fewstep.distillation.flow_map.frame import JumpCoefficients, column, levels
from fewstep.distillation.flow_map.jump import Jump
from fewstep.distillation.flow_map.schedules import Varying
from fewstep.distillation.flow_map.slopes import TimeDerivative
from fewstep.distillation.flow_map.targets import JumpTarget, TargetValue
from fewstep.distillation.part import part

ResidualFunction = Callable[[Networks, Jump, Tensor], tuple[Tensor, int]]
"""(networks, jump, the student's clean prediction (B, ...)) -> R (B, ...) and forward passes."""


@part
def eulerian_residual(
    direction: VelocitySource = teacher_velocity, slope: TimeDerivative = TimeDerivative(), warmup: Varying = 1.0
) -> ResidualFunction:
    """R = -dX/dt = keep pace (D - D_w) - gain dD/dt with D_w the direction; (u - w) + (t - s) du/dt when straight.

    Args:
        direction: w, the velocity of the trajectory.
        slope: how the derivative is taken.
        warmup: factor r of the derivative part: R = a (u - w) + r (R - a (u - w)), where a is 1 on the straight path
            and cos(t - s) on the circle (arXiv 2410.11081, sec. 4.1).
    """

    def residual(networks: Networks, jump: Jump, live: Tensor) -> tuple[Tensor, int]:
        wanted, passes = direction(networks, jump, jump.x, jump.t)
        frame, model = jump.frame, networks.student
        velocity = frame.express(wanted, jump.x, "velocity")

        def predict(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return jump.ask(model, x, t, s)

        change = slope.along(predict, model.process, jump.x, velocity, jump.t, jump.s)
        gap = column(frame.pace, live) * (live - wanted)
        whole = column(frame.keep, live) * gap - column(frame.gain, live) * change
        r = warmup(jump.step, jump.steps) if callable(warmup) else warmup
        if r != 1:
            plain = column(_plain(frame), live) * gap
            whole = plain + r * (whole - plain)
        return whole, passes + 2

    return residual


@part
def eulerian_target(
    direction: VelocitySource = teacher_velocity,
    slope: TimeDerivative = TimeDerivative(),
    warmup: Varying = 1.0,
    shrink: bool = False,
) -> JumpTarget:
    """First leg of no length: the end of a jump does not change along a trajectory, dX_{s,t}(x_t)/dt = 0.

    MeanFlow (direction: data), its distillation and AYF (teacher), sCM and velocity matching (s = 0).

    Args:
        direction: as in `eulerian_residual`.
        slope: likewise.
        warmup: likewise.
        shrink: multiply R by alpha_t, as sCM does.
    """
    residual_of = eulerian_residual(direction, slope, warmup)

    def target(networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        residual, passes = residual_of(networks, jump, live)
        if shrink:
            residual = column(levels(networks.student.process, jump.t)[0], live) * residual
        return jump.frame.express(live, jump.x, "velocity") - residual, "velocity", passes

    return target


@part
def lagrangian_target(
    direction: VelocitySource = teacher_velocity, slope: TimeDerivative = TimeDerivative()
) -> JumpTarget:
    """Second leg of no length: the landing point moves with the flow, dX_{s,t}(x)/ds = v(X_{s,t}(x), s).

    R = pace_s (D - D_v(X, s)) + gain dD/ds; (u - v(X, s)) - (t - s) du/ds on the straight path (arXiv 2406.07507,
    2505.18825). The only derivative is in the end time, and the direction is asked where the student lands: s > 0.
    """

    def target(networks: Networks, jump: Jump, live: Tensor) -> TargetValue:
        model, frame = networks.student, jump.frame
        landed = frame.express(live, jump.x, "state")
        wanted, passes = direction(networks, jump, landed, jump.s)

        def predict(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return jump.ask(model, x, t, s)

        change = slope.in_end(predict, model.process, jump.x, jump.t, jump.s)
        pace = JumpCoefficients.of(model.process, jump.s, jump.s).pace
        residual = column(pace, live) * (live - wanted) + column(frame.gain, live) * change
        return frame.express(live, jump.x, "velocity") - residual, "velocity", passes + 2

    return target


def _plain(frame: JumpCoefficients) -> Tensor:
    """The factor of u - w in R that is left when the network's own derivative is left out."""
    return frame.keep - frame.gain * frame.drift / frame.pace
