"""Decoupled DMD: matching and guidance as separate terms at noise levels of their own."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Critic,
    Method,
    OptimizerSettings,
    Term,
    UpdateRule,
    backward_simulation,
    below_last_call,
    denoising_loss,
    distribution_matching,
    error_normalizer,
    evenly,
    everywhere,
    guidance_difference,
    needing,
    preset,
    score_distillation,
)
from fewstep.errors import FewstepError
from fewstep.process import Process


@preset("decoupled_dmd")
def decoupled_dmd(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 4.5,
    match: bool = True,
    cleaner: bool = True,
    ratio: int = 5,
    floor: float = 0.1,
    each: bool = True,
    step_condition: bool = False,
) -> Method:
    """Decoupled DMD: matching at all noise levels, guidance only below the student's own (arXiv 2511.22677).

        grad = E_t[w_t (C - F)] dx/dtheta + (g - 1) E_{t < t_k}[w_t (F_u - F_c)] dx/dtheta

    Four passes a step, DMD has three.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        match: False leaves guidance alone, which collapses.
        cleaner: False draws guidance at all levels (DMD with two re-noisings).
        ratio: updates of the critic per update of the student.
        floor: of both normalisers (CDM's; the paper is silent).
        each: a random call per sample; False: one for the batch, as in dmd2.
        step_condition: the critic knows which call a sample comes from, as in dmd2.
    """
    if not match and guidance == 1:
        raise FewstepError("without matching and guidance nothing is left to learn", hint="Use guidance above 1.")
    run, levels = evenly(process, steps), everywhere(process)
    near = below_last_call() if cleaner else levels
    terms: dict[str, Term] = {}
    if match:
        terms["match"] = score_distillation(distribution_matching(), levels, (error_normalizer(floor=floor),))
    if guidance != 1:
        terms["guidance"] = score_distillation(
            guidance_difference(), near, (error_normalizer(floor=floor),), scale=guidance - 1
        )
    critic = Critic(denoising_loss(everywhere(process, 0.001, 1.0)), UpdateRule(ratio), steps if step_condition else 0)
    return Method(
        terms,
        run,
        rollout=backward_simulation(run, each),
        critic=critic if match else None,
        needs=needing(guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-7, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0),
    )
