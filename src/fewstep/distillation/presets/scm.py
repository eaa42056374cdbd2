"""Continuous-time consistency: the end of a jump does not change along the trajectory."""

from __future__ import annotations

from fewstep.distillation.chain import evenly
from fewstep.distillation.flow_map import (
    DataVelocity,
    Eulerian,
    FlowMapTerm,
    Intervals,
    LearnedWeight,
    Ramp,
    SquaredError,
    TeacherGuidance,
    TeacherVelocity,
    TimeDerivative,
)
from fewstep.distillation.method import Method, OptimizerSettings, needing, preset
from fewstep.distillation.times import LogNormal
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

        loss = E_t |u - sg(u - R / (|R| + c))|^2,  R = a (u - v) + r (R_full - a (u - v)),  R_full = -dX_{0,t}(x_t)/dt

    teacher: False trains without one. warmup: share of the training over which the derivative is faded in.
    learned_weight: needs a student with a head `uncertainty(time)`.
    """
    term = FlowMapTerm(
        Intervals(LogNormal(-1.0, 1.4)),
        Eulerian(
            TeacherVelocity() if teacher else DataVelocity(),
            TimeDerivative(derivative),
            Ramp(0.0, 1.0, last=warmup),
            shrink=True,
        ),
        metric=SquaredError(),
        weights=(LearnedWeight(),) if learned_weight else (),
        guidance=TeacherGuidance(guidance),
        normalise=normalise,
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.99)),
    )
