"""Score implicit matching: any distance between scores, one step."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Chain,
    Critic,
    Method,
    OptimizerSettings,
    denoising_loss,
    huber_gradient,
    karras_times,
    log_normal_times,
    needing,
    one_step,
    one_step_time,
    preset,
    score_distillation,
    score_identity,
    uniform_times,
)
from fewstep.process import Process


@preset("sim")
def sim(process: Process, *, huber: float = 0.00054, guidance: float = 1.0, start: float | None = None) -> Method:
    """SIM: the score identity with a pseudo-Huber distance in place of the square (arXiv 2410.16794).

        loss = E_t[<d'(F - C), (F - x) - (F - C)>] at x_t,  d(y) = sqrt(|y|^2 + c^2 n), n numbers in a sample

    Args:
        process: of the teacher.
        huber: c, the constant per square root of the dimension, on differences of clean predictions (the paper: of
            scores, its constant is not published).
        guidance: scale g of the teacher's guidance; 1: none.
        start: process time of the call.
    """
    time = one_step_time(process) if start is None else start
    unbounded = process.unbounded
    levels = karras_times(0.8) if unbounded else uniform_times(0.02, 0.98)
    return Method(
        {"score": score_distillation(score_identity(1.0, guidance), levels, slope=huber_gradient(huber))},
        Chain((time,)),
        rollout=one_step(time),
        critic=Critic(denoising_loss(log_normal_times(-1.2, 1.2) if unbounded else levels)),
        needs=needing(guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-5, betas=(0.0, 0.999)),
    )
