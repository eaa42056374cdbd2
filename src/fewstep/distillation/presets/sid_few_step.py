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
    UpdateRule,
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

    (guidance, critic_guidance): (4.5, 4.5) LSG, (1, 0) Zero-CFG, (1, -1) Anti-CFG. On flows the noise levels are those
    of SiD-DiT.

    Args:
        process: of the teacher.
        steps: calls of the student.
        alpha: as in the formula.
        guidance: of the teacher.
        critic_guidance: of the critic.
        adversarial: weight; above 0 needs data. The heads are small networks on critic features, where the paper reads
            the features themselves as logits.
        modules: layers that the discriminator reads.
        channels: channels of these layers, by name; looked up unless given.
        fresh: 1 noises anew between calls, 0 is a deterministic chain.
        each: a random call per sample; the paper draws one for the batch, which collapses at large learning rates.
        floor: of the normaliser, as in dmd2.
        signal: SiD-DiT's weight alpha (there 1 - sigma) in place of SiD's 1 / mean |x - F|; it all but silences the
            noisiest levels, which show where the whole mixture lies: students of several calls collapse at rates that
            the latter bears.
        critic_rate: the critic's learning rate over the student's, 1 in the paper; more, such as TDM's 5, where rates
            are large and the critic lags.
        step_condition: the critic knows which call a sample comes from, as in dmd2.
    """
    run = evenly(process, steps, fresh)
    levels = logit_normal_times(math.log(2), 1.6, least=0.01) if straight(process) else everywhere(process)
    weight = scale_weight(alpha=1) if signal else error_normalizer(guidance, floor)
    terms = {"score": score_distillation(score_identity(alpha, guidance, critic_guidance), levels, (weight,))}
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
        rollout=backward_simulation(run, each),
        critic=Critic(denoising_loss(levels, guidance=critic_guidance), tracking, steps if step_condition else 0),
        adversary=adversary,
        needs=needing(data=bool(adversarial), guided=guided),
        settings=OptimizerSettings(learning_rate=1e-6, betas=(0.0, 0.999)),
    )
