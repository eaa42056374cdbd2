"""Diff-Instruct: the plain reverse KL, one step."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Chain,
    Critic,
    Method,
    OptimizerSettings,
    denoising_loss,
    distribution_matching,
    log_normal_times,
    one_step,
    one_step_time,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("diff_instruct", guidance=False)
def diff_instruct(process: Process, *, start: float | None = None, mean: float = -1.2, std: float = 1.2) -> Method:
    """Diff-Instruct: critic minus teacher without guidance or normaliser, one step (arXiv 2305.18455).

        grad = E_t[C(x_t) - F(x_t)] dx/dtheta

    Args:
        process: of the teacher.
        start: process time of the call (the paper: sigma 1 on CIFAR-10).
        mean: of log(sigma / alpha).
        std: of log(sigma / alpha).
    """
    time = one_step_time(process, sigma=1.0) if start is None else start
    levels = log_normal_times(mean, std)
    return Method(
        {"score": score_distillation(distribution_matching(), levels)},
        Chain((time,)),
        rollout=one_step(time),
        critic=Critic(denoising_loss(levels)),
        settings=OptimizerSettings(learning_rate=1e-5, betas=(0.0, 0.999)),
    )
