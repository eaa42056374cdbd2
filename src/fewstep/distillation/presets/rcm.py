"""rCM: continuous consistency keeps the modes, score distillation sharpens the samples."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Critic,
    Method,
    OptimizerSettings,
    TeacherGuidance,
    TimeDerivative,
    UpdateRule,
    backward_simulation,
    denoising_loss,
    distribution_matching,
    error_normalizer,
    eulerian_target,
    evenly,
    everywhere,
    flow_map_term,
    jump_times,
    log_normal_times,
    needing,
    preset,
    ramp,
    score_distillation,
    squared_error,
    teacher_velocity,
)
from fewstep.process import Process


@preset("rcm")
def rcm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 1.0,
    ratio: int = 5,
    consistency: float = 100.0,
    derivative: str = "jvp",
    warmup: float = 0.1,
    normalise: float = 0.1,
    step_condition: bool = False,
    floor: float = 1e-5,
) -> Method:
    """rCM: sCM on data and DMD on the student's own samples, in one loss (arXiv 2510.08431).

        grad = consistency grad |u - sg(u - R / (|R| + c))|^2 + E_k E_t[w_t (C(x_t) - F^g(x_t))] dx_k/dtheta
        critic, `ratio` times:  |C(x_t) - x|^2 in its own prediction

    R as in `scm`, w_t and the roll-out as in `dmd2`. The consistency term covers every mode of the data and is blurred
    by the errors that it adds up; the score term is the reverse.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance, in both terms; 1: none.
        ratio: updates of the critic per update of the student.
        consistency: weight of the first term.
        derivative: `jvp` or `difference`.
        warmup: share of the training over which the derivative is faded in.
        normalise: c.
        step_condition: the critic knows which call a sample comes from.
        floor: of the normaliser w_t; 0.1 for data of few dimensions.
    """
    chain = evenly(process, steps)
    jumps = jump_times(log_normal_times(-1.0, 1.4))
    target = eulerian_target(teacher_velocity, TimeDerivative(derivative), ramp(0.0, 1.0, last=warmup), shrink=True)
    terms = {
        "consistency": flow_map_term(
            jumps,
            target,
            metric=squared_error(),
            guidance=TeacherGuidance(guidance),
            normalise=normalise,
            factor=consistency,
        ),
        "score": score_distillation(
            distribution_matching(guidance), everywhere(process), (error_normalizer(guidance, floor),)
        ),
    }
    return Method(
        terms,
        chain,
        rollout=backward_simulation(chain),
        critic=Critic(
            denoising_loss(everywhere(process, 0.001, 1.0)), UpdateRule(ratio), calls=steps if step_condition else 0
        ),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-6, betas=(0.9, 0.99)),
    )
