"""DMD2: several steps by backward simulation, a slower student, an adversary on the critic's features."""

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
    discriminator_heads,
    discriminator_loss,
    distribution_matching,
    error_normalizer,
    evenly,
    everywhere,
    generator_loss,
    needing,
    noised_data_rollout,
    preset,
    score_distillation,
)
from fewstep.process import Process


@preset("dmd2", reads_layers=True)
def dmd2(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    ratio: int = 5,
    adversarial: float = 5e-3,
    modules: Sequence[str] = ("mid_block",),
    channels: Mapping[str, int] | None = None,
    reads: str = "critic",
    simulate: bool = True,
    each: bool = True,
    step_condition: bool = False,
    floor: float = 1e-5,
) -> Method:
    """DMD2: backward simulation, five critic updates per student's, adversary on critic features (arXiv 2405.14867).

        grad = E_k E_t[w_t (C(x_t) - F^g(x_t))] dx_k/dtheta,  w_t = 1 / mean |x - F^g(x_t)|;
        + adversarial grad E softplus(-D(x_t))
        critic, `ratio` times:  |C(x_t) - x|^2 in its own prediction + 1e-2 [softplus(D(x_t)) + softplus(-D(y_t))]

    The same as plain loops, without the adversary: `benchmarks/plain_loops.py`. Heads are pointwise, the paper's
    convolutional.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: g, of the teacher.
        ratio: updates of critic and discriminator per update of the student.
        adversarial: weight; 0 trains without data.
        modules: layers that the discriminator reads.
        channels: of these layers, by name; looked up unless given.
        reads: whose layers: the `critic`'s are trained with it, the `teacher`'s (FastGen) not.
        simulate: False starts from noised data, as FastGen does (a mismatch with sampling).
        each: a random call per sample; the paper draws one for the batch, which the critic must forget between steps.
        step_condition: the critic knows which call a sample comes from; the paper's follows the mixture of all calls.
        floor: of the normaliser; 0.1 for data of few dimensions, where the error of single samples nearly vanishes.
    """
    chain = evenly(process, steps)
    levels, all_levels = everywhere(process), everywhere(process, 0.001, 1.0)
    # the student: its own chain up to a random call, moved by the difference of scores and by the adversary
    rollout = backward_simulation(chain, each) if simulate else noised_data_rollout(chain)
    weights = (error_normalizer(guidance, floor),)
    terms = {"score": score_distillation(distribution_matching(guidance), levels, weights)}
    # the fake score: denoises what the student makes, several times per update of the student
    critic = Critic(denoising_loss(all_levels), UpdateRule(ratio), calls=steps if step_condition else 0)
    # the discriminator: heads on the fake score's features of noised samples and data, trained together with it
    adversary = None
    if adversarial:
        features, on_critic = NetworkFeatures(reads, tuple(modules)), reads == "critic"
        terms["adversarial"] = generator_loss(features, all_levels, scale=adversarial)
        heads = discriminator_heads(features, channels=channels)
        real_or_fake = discriminator_loss(features, all_levels, scale=1e-2, train_source=on_critic)
        adversary = Adversary(heads, real_or_fake, UpdateRule(ratio), with_critic=on_critic)
    return Method(
        terms,
        steps=chain,
        rollout=rollout,
        critic=critic,
        adversary=adversary,
        needs=needing(data=bool(adversarial) or not simulate, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-7, betas=(0.9, 0.999), weight_decay=0.01, clip_norm=10.0),
    )
