"""Score identity distillation, one step."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Chain,
    Critic,
    Method,
    OptimizerSettings,
    denoising_loss,
    error_normalizer,
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


@preset("sid")
def sid(
    process: Process,
    *,
    alpha: float = 1.2,
    guidance: float = 1.0,
    critic_guidance: float | None = None,
    start: float | None = None,
    drop: float = 0.0,
    floor: float = 1e-5,
) -> Method:
    """SiD: the Fisher divergence by the score identity, differentiated through teacher and critic (arXiv 2404.04057).

        loss = E_t[w_t <F - C, (F - x) - alpha (F - C)>] at x_t,  w_t = 1 / mean |x - F(x_t)|

    Args:
        process: of the teacher.
        alpha: as in the formula; above 1 is safe from a good start only, 1 always descends on Gaussians.
        guidance: of the teacher and, unless `critic_guidance` is given, of the critic alike (LSG, arXiv 2406.01561).
        critic_guidance: of the critic.
        start: process time of the call.
        drop: rate of the critic's samples without condition (LSG: 0.1).
        floor: of the normaliser, as in dmd2.
    """
    theirs = guidance if critic_guidance is None else critic_guidance
    time = one_step_time(process) if start is None else start
    unbounded = process.unbounded
    levels = karras_times(0.8) if unbounded else uniform_times(0.02, 0.98)
    return Method(
        {
            "score": score_distillation(
                score_identity(alpha, guidance, theirs), levels, (error_normalizer(guidance, floor),)
            )
        },
        Chain((time,)),
        rollout=one_step(time),
        critic=Critic(denoising_loss(log_normal_times(-1.2, 1.2) if unbounded else levels, guidance=theirs, drop=drop)),
        needs=needing(guided=(guidance, theirs) != (1.0, 1.0)),
        settings=OptimizerSettings(learning_rate=1e-5, betas=(0.0, 0.999)),
    )
