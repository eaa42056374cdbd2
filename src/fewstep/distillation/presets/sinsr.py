"""SinSR: one step from a deterministic many-step restorer."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Chain,
    Method,
    OptimizerSettings,
    evenly,
    needing,
    preset,
    two_way_regression,
)
from fewstep.process import Process, ResidualShift


@preset("sinsr")
def sinsr(process: Process, *, teacher_steps: int = 15, inverse: float = 1.0, data: float = 1.0) -> Method:
    """SinSR: the deterministic end of the teacher, the noise that leads there, and data through both (2311.14760).

        loss = |x(z) - y(z)|^2 + inverse |g(y(z)) - z|^2 + data |x(sg g(y)) - y|^2,  y(z): the teacher's DDIM from z

    On `ResidualShift` these are states of the residual x0 - y: give networks that add the picture and take it off.

    Args:
        process: of the teacher.
        teacher_steps: of the teacher's DDIM; on `ResidualShift` all of its training's instead.
        inverse: weight of the way back; g is the student's network at the cleanest time.
        data: weight of real data.
    """
    if isinstance(process, ResidualShift):
        times = tuple(float(t) for t in range(process.steps - 1, -1, -1))
    else:
        times = evenly(process, teacher_steps).times
    return Method(
        {"two_way": two_way_regression(times, inverse, data)},
        Chain((process.noisiest,)),
        needs=needing(data=bool(data)),
        settings=OptimizerSettings(learning_rate=5e-5),
    )
