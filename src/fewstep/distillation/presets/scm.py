"""Continuous-time consistency: the end of a jump does not change along the trajectory."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TeacherGuidance,
    TimeDerivative,
    data_velocity,
    eulerian_target,
    evenly,
    flow_map_term,
    jump_times,
    learned_uncertainty,
    log_normal_times,
    needing,
    preset,
    ramp,
    squared_error,
    teacher_velocity,
)
from fewstep.process import Process


@preset("scm")
def scm(
    process: Process,
    *,
    steps: int = 2,
    guidance: float = 1.0,
    teacher: bool = True,
    derivative: str = "jvp",
    warmup: float = 0.1,
    normalise: float = 0.1,
    learned_weight: bool = False,
) -> Method:
    """sCM, continuous consistency: tangent warm-up, whole residual normalised (arXiv 2410.11081).

        loss = E_t |u - sg(u - R / (|R| + c))|^2,  R = alpha_t (a (u - v) + r (R_full - a (u - v))),
        R_full = -dX_{0,t}(x_t)/dt,  r from 0 to 1 in the warm-up,  a: 1 on the straight path, cos t on the circle

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        teacher: False trains without one.
        derivative: `jvp` or `difference`.
        warmup: share of the training over which the derivative is faded in.
        normalise: c.
        learned_weight: needs a student with a head `uncertainty(time)`.
    """
    term = flow_map_term(
        jump_times(log_normal_times(-1.0, 1.4)),
        eulerian_target(
            teacher_velocity if teacher else data_velocity,
            TimeDerivative(derivative),
            ramp(0.0, 1.0, last=warmup),
            shrink=True,
        ),
        metric=squared_error(),
        weights=(learned_uncertainty,) if learned_weight else (),
        guidance=TeacherGuidance(guidance),
        normalise=normalise,
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.99)),
    )
