"""Latent adversarial diffusion distillation: heads on the teacher's features, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewstep.distillation.parts import (
    Adversary,
    FeatureSource,
    Method,
    NetworkFeatures,
    OptimizerSettings,
    discriminator_heads,
    discriminator_loss,
    evenly,
    generator_loss,
    logit_normal_times,
    needing,
    noised_data_rollout,
    preset,
)
from fewstep.process import Process


@preset("ladd", reads_layers=True)
def ladd(
    process: Process,
    *,
    steps: int = 4,
    modules: Sequence[str] = ("mid_block",),
    channels: Mapping[str, int] | None = None,
    loss: str = "hinge",
    penalty: float = 100.0,
    mean: float = 0.0,
    std: float = 1.0,
    source: FeatureSource | None = None,
) -> Method:
    """LADD: an adversary on the teacher's features at random noise levels, students of noised data (arXiv 2403.12015).

        loss = -E_t D(features of F at x_t);  D: hinge loss + penalty |D(y_t + noise) - D(y_t)|^2 on real y

    The paper distils on synthetic data of the teacher.

    Args:
        process: of the teacher.
        steps: calls of the student.
        modules: layers of the teacher that the discriminator reads.
        channels: channels of these layers, by name; looked up unless given.
        loss: of the adversary, one of `fewstep.distillation.adversary.LOSSES`.
        penalty: of the approximate R1 (FastGen: 100 to 1000).
        mean: of the logit of the discriminator's time, the knob between structure (noisy) and texture (clean).
        std: likewise.
        source: other features than those of the teacher's `modules`.
    """
    run, levels = evenly(process, steps), logit_normal_times(mean, std)
    taps = NetworkFeatures("teacher", tuple(modules)) if source is None else source
    return Method(
        {"adversarial": generator_loss(taps, levels, loss, scale=1.0)},
        run,
        rollout=noised_data_rollout(run),
        adversary=Adversary(
            discriminator_heads(taps, channels=channels), discriminator_loss(taps, levels, loss, penalty=penalty)
        ),
        needs=needing(data=True),
        settings=OptimizerSettings(learning_rate=1e-5, betas=(0.0, 0.99)),
    )
