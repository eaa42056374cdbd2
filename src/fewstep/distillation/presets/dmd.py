"""Distribution matching distillation, one step."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Critic,
    Method,
    OptimizerSettings,
    UpdateRule,
    backward_simulation,
    denoising_loss,
    distribution_matching,
    error_normalizer,
    evenly,
    everywhere,
    needing,
    paired_regression,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("dmd")
def dmd(process: Process, *, guidance: float = 3.0, pairs: float = 0.25, floor: float = 1e-5) -> Method:
    """DMD: critic against guided teacher, and regression on the teacher's own paths (arXiv 2311.18828).

        grad = E_t[w_t (C(x_t) - F^g(x_t))] dx/dtheta,  w_t = 1 / mean |x - F^g(x_t)|;  + pairs |x(z) - y|^2

    The paper's distance of the pairs is LPIPS; here mean squares.

    Args:
        process: of the teacher.
        guidance: scale g of the teacher's guidance; 1: none.
        pairs: weight of the regression; 0 without a trajectory store.
        floor: of the normaliser, as in dmd2.
    """
    steps = evenly(process, 1)
    levels = everywhere(process)
    terms = {"score": score_distillation(distribution_matching(guidance), levels, (error_normalizer(guidance, floor),))}
    if pairs:
        terms["pairs"] = paired_regression(pairs)
    return Method(
        terms,
        steps,
        rollout=backward_simulation(steps),
        critic=Critic(denoising_loss(everywhere(process, 0.001, 1.0)), UpdateRule(ratio=1)),
        needs=needing(store=bool(pairs), guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-5, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0),
    )
