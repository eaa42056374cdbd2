"""Flash-DMD: matching at the noisy calls, an adversary at the clean ones, a critic pulled towards the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewstep.distillation.parts import (
    Adversary,
    Critic,
    FeatureSource,
    Method,
    NetworkFeatures,
    OptimizerSettings,
    UpdateRule,
    backward_simulation,
    denoising_loss,
    discriminator_heads,
    discriminator_loss,
    distribution_matching,
    error_normalizer,
    evenly,
    everywhere,
    generator_loss,
    later_call,
    logit_normal_times,
    needing,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("flash_dmd", reads_layers=True)
def flash_dmd(
    process: Process,
    *,
    steps: int = 4,
    noisy: int | None = None,
    guidance: float = 8.0,
    adversarial: float = 5e-3,
    ratio: int = 2,
    pull: float = 0.03,
    source: FeatureSource | None = None,
    modules: Sequence[str] = ("mid_block",),
    channels: Mapping[str, int] | None = None,
    floor: float = 1e-5,
    step_condition: bool = False,
) -> Method:
    """Flash-DMD, first stage: structure from matching at noisy calls, texture from an adversary later (2511.20549).

        grad = E_{k < noisy} E_t[w_t (C - F^g)] dx_k/dtheta;  + adversarial E softplus(-D(x_j)) at a later call j

    adversarial and pull are not published: those of DMD2 and SenseFlow.

    Args:
        process: of the teacher.
        steps: calls of the student.
        noisy: how many first calls are matched (half; not stated in the paper).
        guidance: scale g of the teacher's guidance; 1: none.
        adversarial: weight of the adversary.
        ratio: updates of the critic per update of the student.
        pull: share of the way that the critic is moved to the student after each update.
        source: features of clean samples, such as `encoder_features` of a frozen SAM with the decoder; without one the
            teacher's features of noised samples.
        modules: layers of the teacher that the discriminator reads without a source.
        channels: channels of these layers, by name; looked up unless given.
        floor: of the normaliser, as in dmd2.
        step_condition: the critic knows which call a sample comes from, as in dmd2.
    """
    run, levels = evenly(process, steps), everywhere(process)
    early = max(1, steps // 2) if noisy is None else noisy
    late = run.times[early:] or run.times[-1:]
    taps = NetworkFeatures("teacher", tuple(modules)) if source is None else source
    seen = logit_normal_times() if source is None else None
    return Method(
        {
            "score": score_distillation(distribution_matching(guidance), levels, (error_normalizer(guidance, floor),)),
            "texture": later_call(run, late, generator_loss(taps, seen, scale=adversarial)),
        },
        run,
        rollout=backward_simulation(run, each=True, first=early),
        critic=Critic(
            denoising_loss(everywhere(process, 0.001, 1.0)),
            UpdateRule(ratio, pull=pull),
            steps if step_condition else 0,
        ),
        adversary=Adversary(
            discriminator_heads(taps, channels=channels),
            later_call(run, late, discriminator_loss(taps, seen), learn=False),
        ),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-7, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0),
    )
