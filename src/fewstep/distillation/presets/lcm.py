"""Latent consistency distillation, and discrete consistency distillation and training."""

from __future__ import annotations

from fewstep.distillation.chain import evenly
from fewstep.distillation.flow_map import (
    Back,
    Boundary,
    Curved,
    ElementHuber,
    Even,
    FlowMapTerm,
    Guidance,
    Intervals,
    InverseStep,
    PseudoHuber,
    SameNoise,
    Shrinking,
    Solver,
    Student,
    TwoLeg,
    sinusoid,
)
from fewstep.distillation.method import Method, Settings, Target, needing, preset
from fewstep.distillation.times import LogNormal
from fewstep.process import Process

LONG_CLOCK = 100.0
"""The boundary of LCM counts network time in training steps; networks with shorter clocks do without it."""


@preset("lcm")
def lcm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    highest: float | None = None,
    told: str | None = None,
    parts: int = 50,
    decay: float = 0.95,
    huber: float = 1e-3,
) -> Method:
    """Latent consistency distillation: jumps to the data agree after one guided DDIM step (arXiv 2310.04378).

    highest, told: draw guidance up to `highest` and tell the student as this condition (`timestep_cond` in diffusers).
    """
    grid = Even(parts)
    with_boundary = process.network_time(process.noisiest) >= LONG_CLOCK
    term = FlowMapTerm(
        Intervals(grid, middle=Back(grid)),
        TwoLeg(Solver(), Student()),
        metric=ElementHuber(huber),
        space="state",
        guidance=Guidance(guidance, highest, key=told, embed=sinusoid() if told else None),
        boundary=Boundary() if with_boundary else None,
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        target=Target(decay),
        needs=needing(data=True, guided=guidance != 1 or bool(highest)),
        settings=Settings(learning_rate=1e-5, weight_decay=1e-2),
    )


@preset("consistency_distillation")
def consistency_distillation(
    process: Process, *, steps: int = 2, guidance: float = 1.0, parts: int = 18, order: int = 2, decay: float = 0.95
) -> Method:
    """Consistency distillation on EDM's grid: a second-order step of the teacher, then the student (2303.01469)."""
    grid = Curved(parts)
    term = FlowMapTerm(
        Intervals(grid, middle=Back(grid)),
        TwoLeg(Solver(order), Student()),
        space="state",
        guidance=Guidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        target=Target(decay),
        needs=needing(data=True, guided=guidance != 1),
        settings=Settings(learning_rate=8e-6),
    )


@preset("ect")
def ect(process: Process, *, steps: int = 2, q: float = 2.0, stages: int = 8, c: float = 0.0) -> Method:
    """Easy consistency tuning: no teacher calls, the first leg shrinks as training goes on (arXiv 2406.14548)."""
    term = FlowMapTerm(
        Intervals(LogNormal(-1.1, 2.0), middle=Shrinking(q, stages)),
        TwoLeg(SameNoise(), Student()),
        metric=PseudoHuber(c),
        weights=(InverseStep(),),
        space="state",
    )
    return Method({"consistency": term}, evenly(process, steps), needs=needing(data=True))
