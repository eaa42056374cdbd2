"""Trajectory distribution matching: each call of a deterministic student matched on its own interval."""

from __future__ import annotations

import torch

from fewstep.distillation.parts import (
    Chain,
    Critic,
    Method,
    OptimizerSettings,
    UpdateRule,
    backward_simulation,
    denoising_loss,
    distribution_matching,
    error_normalizer,
    huber_gradient,
    last_interval,
    needing,
    onward,
    preset,
    scale_weight,
    score_distillation,
    time_at,
)
from fewstep.process import Process


@preset("tdm")
def tdm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 4.5,
    start: float = 0.9,
    overlap: bool = False,
    floor: float = 1e-5,
) -> Method:
    """TDM: what a deterministic step leads to, noised on within that step's own interval (arXiv 2503.06674).

        grad = E_k E_t[w_t d'(C(y_t) - F^g(y_t))] dx/dtheta,  y_t: state after call k noised on to t_{k+1} < t < t_k

    The networks do not take the number of steps (TDM-unify).

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        start: first call as a part of the range (the demo: 0.9), used where the noisiest state holds data.
        overlap: noise up to the noisiest time instead, which makes one critic follow several laws.
        floor: of the normaliser, as in dmd2.
    """
    first = 1.0 if process.alpha(process.noisiest) < 1e-6 else start
    parts = torch.tensor([first * (1 - k / steps) for k in range(steps)], dtype=torch.float64)
    run = Chain(tuple(time_at(process, parts).tolist()), fresh=0.0)
    levels = last_interval(whole=overlap)
    student = score_distillation(
        distribution_matching(guidance),
        levels,
        (error_normalizer(guidance, floor),),
        huber_gradient(1e-3, elementwise=True),
        noising=onward,
    )
    critic = denoising_loss(
        levels, own=False, weights=(scale_weight(2, -2, most=5.0),), noising=onward, importance="tempered"
    )
    return Method(
        {"score": student},
        run,
        rollout=backward_simulation(run, each=True),
        critic=Critic(critic, UpdateRule(learning_rate=5.0)),
        needs=needing(guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=4e-6, betas=(0.0, 0.95), weight_decay=0.01, warmup=50),
    )
