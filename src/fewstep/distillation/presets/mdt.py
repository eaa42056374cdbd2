"""Marginal-data transport: average velocities to the data, by matching velocities and by distilling them."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TeacherGuidance,
    Term,
    TimeDerivative,
    eulerian_residual,
    eulerian_target,
    evenly,
    flow_map_term,
    jump_times,
    logit_normal_times,
    needing,
    preset,
    velocity_distillation,
)
from fewstep.process import Process


@preset("mdt")
def mdt(
    process: Process,
    *,
    steps: int = 1,
    guidance: float = 41.0,
    sample_guidance: float = 101.0,
    matching: float = 1.0,
    distillation: float = 1.0,
    derivative: str = "difference",
    delta: float = 5e-3,
    normalise: float | None = 0.1,
    fresh: float = 0.0,
) -> Method:
    """MDT-dist: velocity matching and velocity distillation of a network of one time (arXiv 2509.04406).

        loss = matching |u - sg(u - R)|^2 + distillation |x - sg(x + R)|^2,  R = (u - v^g) + t du/dt

    The authors' scales of guidance, 40 and 100, count from 0.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: of the teacher, in matching.
        sample_guidance: of the teacher, in distillation.
        matching: weight; 0 leaves it out.
        distillation: weight; 0 leaves it out.
        derivative: `difference` or `jvp`.
        delta: width of the differences.
        normalise: of the whole residual, which keeps the fixed point; the released code normalises the derivative
            alone, which does not. None is the paper's text, which needs its learning rate of 1e-8.
        fresh: 0 samples as the authors do; 1 noises anew, which is what a map to the data is meant for.
    """
    times, slope = jump_times(logit_normal_times(1.0, 1.0)), TimeDerivative(derivative, delta)
    terms: dict[str, Term] = {}
    if matching:
        terms["matching"] = flow_map_term(
            times,
            eulerian_target(slope=slope),
            guidance=TeacherGuidance(guidance),
            normalise=normalise,
            factor=matching,
        )
    if distillation:
        scale = TeacherGuidance(sample_guidance)
        terms["distillation"] = velocity_distillation(
            times, eulerian_residual(slope=slope), scale, normalise, distillation
        )
    guided = (guidance, sample_guidance) != (1.0, 1.0)
    return Method(
        terms,
        evenly(process, steps, fresh),
        needs=needing(data=True, guided=guided),
        settings=OptimizerSettings(learning_rate=4e-8, ema=0.9999),
    )
