"""Continuous-time consistency: the end of a jump does not change along the trajectory."""

from __future__ import annotations

from fewstep.distillation.chain import evenly
from fewstep.distillation.flow_map import (
    Data,
    Eulerian,
    FlowMapTerm,
    Guidance,
    Intervals,
    Learned,
    Ramp,
    Slope,
    Squared,
    Teacher,
)
from fewstep.distillation.method import Method, Settings, needing, preset
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

    teacher: False trains without one. warmup: share of the training over which the derivative is faded in.
    learned_weight: needs a student with a head `uncertainty(time)`.
    """
    term = FlowMapTerm(
        Intervals(LogNormal(-1.0, 1.4)),
        Eulerian(Teacher() if teacher else Data(), Slope(derivative), Ramp(0.0, 1.0, last=warmup), shrink=True),
        metric=Squared(),
        weights=(Learned(),) if learned_weight else (),
        guidance=Guidance(guidance),
        normalise=normalise,
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        needs=needing(data=True, guided=guidance != 1),
        settings=Settings(learning_rate=1e-4, betas=(0.9, 0.99)),
    )
