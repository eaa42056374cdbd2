"""f-distill: DMD2 whose gradient is weighted by a density ratio, for any f-divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewstep.distillation.parts import (
    Adversary,
    Critic,
    Method,
    NetworkFeatures,
    OptimizerSettings,
    UpdateRule,
    backward_simulation,
    denoising_loss,
    density_ratio_weight,
    discriminator_heads,
    discriminator_loss,
    distribution_matching,
    error_normalizer,
    evenly,
    everywhere,
    generator_loss,
    needing,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("f_distill", reads_layers=True)
def f_distill(
    process: Process,
    *,
    divergence: str = "forward_kl",
    steps: int = 4,
    guidance: float = 1.0,
    ratio: int = 5,
    adversarial: float = 1e-3,
    modules: Sequence[str] = ("mid_block",),
    channels: Mapping[str, int] | None = None,
    each: bool = True,
    floor: float = 1e-5,
) -> Method:
    """f-distill: the adversary's density ratio weighs DMD2's gradient, `forward_kl` covers modes (arXiv 2502.15681).

        grad = E_t[h(r_t) w_t (C(x_t) - F^g(x_t))] dx/dtheta,  r_t = p_data(x_t) / p_student(x_t) = exp(logit)

    The ratio is read from the features of the critic's own call, so that it costs no pass (FastGen: the teacher's).

    Args:
        process: of the teacher.
        divergence: one of `fewstep.distillation.score.weights.RATIOS`.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        ratio: updates of critic and discriminator per update of the student.
        adversarial: weight of the student's adversarial loss.
        modules: layers that the discriminator reads.
        channels: channels of these layers, by name; looked up unless given.
        each: a random call per sample; False: one for the batch, as in dmd2.
        floor: of the normaliser, as in dmd2.
    """
    run = evenly(process, steps)
    levels, all_levels = everywhere(process), everywhere(process, 0.001, 1.0)
    taps = NetworkFeatures("critic", tuple(modules))
    weights = (error_normalizer(guidance, floor), density_ratio_weight(divergence))
    return Method(
        {
            "score": score_distillation(distribution_matching(guidance), levels, weights, taps=taps),
            "adversarial": generator_loss(taps, all_levels, scale=adversarial),
        },
        run,
        rollout=backward_simulation(run, each),
        critic=Critic(denoising_loss(all_levels), UpdateRule(ratio)),
        adversary=Adversary(
            discriminator_heads(taps, channels=channels),
            discriminator_loss(taps, all_levels, scale=1e-2, train_source=True),
            UpdateRule(ratio),
            with_critic=True,
        ),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-7, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0),
    )
