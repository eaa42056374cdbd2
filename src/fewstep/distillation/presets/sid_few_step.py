"""Few-step SiD: the uniform mixture over all calls of the student, and the three kinds of guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fewstep.distillation.parts import (
    Adversary,
    Critic,
    Method,
    NetworkFeatures,
    OptimizerSettings,
    Term,
    TimeDistribution,
    UpdateRule,
    Weight,
    backward_simulation,
    denoising_loss,
    discriminator_heads,
    discriminator_loss,
    error_normalizer,
    evenly,
    everywhere,
    generator_loss,
    logit_normal_times,
    needing,
    preset,
    scale_weight,
    score_distillation,
    score_identity,
    straight,
)
from fewstep.process import Process


@preset("sid_few_step", reads_layers=True)
def sid_few_step(
    process: Process,
    *,
    steps: int = 4,
    alpha: float = 1.0,
    guidance: float = 1.0,
    critic_guidance: float = 1.0,
    adversarial: float = 0.0,
    modules: Sequence[str] = ("mid_block",),
    channels: Mapping[str, int] | None = None,
    fresh: float = 1.0,
    each: bool = True,
    floor: float = 1e-5,
    signal: bool = False,
    critic_rate: float = 1.0,
    step_condition: bool = False,
) -> Method:
    """Few-step SiD: one student and one critic for all calls, chosen at random per batch (2505.12674, 2509.25127).

        loss = E_k E_t[w_t <F - C, (F - x_k) - alpha (F - C)>],  x_k what call k makes, noised to t

    guidance, critic_guidance: (4.5, 4.5) LSG, (1, 0) Zero-CFG, (1, -1) Anti-CFG. adversarial: above 0 needs data; its
    heads are small networks on critic features, where the paper reads the features themselves as logits. each: a random
    call per sample; the paper draws one for the batch, which collapses at large learning rates.
    On flows the noise levels are those of SiD-DiT. signal: its weight alpha (there 1 - sigma) in place of SiD's
    1 / mean |x - F| (floor as in dmd2); it all but silences the noisiest levels, which show where the whole mixture
    lies: students of several calls collapse at rates that the latter bears. critic_rate: the critic's learning rate
    over the student's, 1 in the paper; more, such as TDM's 5, where rates are large and the critic lags.
    step_condition: as in dmd2.
    """
    run = evenly(process, steps, fresh)
    levels: TimeDistribution = (
        logit_normal_times(math.log(2), 1.6, least=0.01) if straight(process) else everywhere(process)
    )
    weight: Weight = scale_weight(alpha=1) if signal else error_normalizer(guidance, floor)
    terms: dict[str, Term] = {
        "score": score_distillation(score_identity(alpha, guidance, critic_guidance), levels, (weight,))
    }
    adversary = None
    if adversarial:
        taps = NetworkFeatures("critic", tuple(modules))
        terms["adversarial"] = generator_loss(taps, levels, "bce", adversarial)
        learns = discriminator_loss(taps, levels, "bce", same_noise=True, train_source=True)
        adversary = Adversary(discriminator_heads(taps, channels=channels), learns, with_critic=True)
    tracking = UpdateRule(learning_rate=critic_rate)
    guided = (guidance, critic_guidance) != (1.0, 1.0)
    return Method(
        terms,
        run,
        backward_simulation(run, each),
        Critic(denoising_loss(levels, guidance=critic_guidance), tracking, steps if step_condition else 0),
        adversary,
        needs=needing(data=bool(adversarial), guided=guided),
        settings=OptimizerSettings(learning_rate=1e-6, betas=(0.0, 0.999)),
    )
