"""OSEDiff: one step from the degraded picture itself, without noise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.parts import (
    Chain,
    Critic,
    Method,
    OptimizerSettings,
    condition_rollout,
    data_regression,
    denoising_loss,
    distribution_matching,
    error_normalizer,
    everywhere,
    feature_distance,
    needing,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("osediff")
def osediff(
    process: Process,
    *,
    start: str | None = "given",
    guidance: float = 7.5,
    matching: float = 1.0,
    perceptual: float = 2.0,
    features: Callable[[Tensor], Tensor] | None = None,
    floor: float = 1e-5,
) -> Method:
    """OSEDiff: from the degraded picture in one step; regression, features and matched scores (arXiv 2406.08177).

        loss = |x - y|^2 + perceptual |features(x) - features(y)|^2,  x = D(picture, T);
        + matching grad E_t[w_t (C(x_t) - F^g(x_t))] dx/dtheta,  w_t = 1 / mean |x - F^g(x_t)|

    Run the student with the picture as first state: `sample(plan, network, state=picture)`.

    Args:
        process: of the teacher.
        start: condition that holds the first state (B, ...), which the networks are told too; None: zeros, which on the
            residual of a picture (`ResidualShift`) is the picture.
        guidance: g, of the teacher; 1: none.
        matching: weight of the score term.
        perceptual: weight of the features.
        features: (B, ...) -> features, differentiable, of a frozen network, with the decoder where samples are latents;
            the paper: LPIPS. None: no feature loss.
        floor: of the normaliser, as in dmd2.
    """
    levels = everywhere(process)
    weights = (error_normalizer(guidance, floor),)
    terms = {"data": data_regression()}
    if features is not None and perceptual:
        terms["features"] = data_regression(perceptual, feature_distance(features))
    terms["score"] = score_distillation(distribution_matching(guidance), levels, weights, scale=matching)
    return Method(
        terms,
        Chain((process.noisiest,)),
        rollout=condition_rollout(process.noisiest, start),
        critic=Critic(denoising_loss(everywhere(process, 0.001, 1.0))),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-5, betas=(0.9, 0.999), weight_decay=0.01),
    )
