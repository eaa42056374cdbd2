"""Few-step regression on stored key states, with an adversary at each of them."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Adversary,
    FeatureSource,
    Method,
    OptimizerSettings,
    UpdateRule,
    backward_simulation,
    discriminator_heads,
    evenly,
    flow_map_term,
    key_state_discriminator_loss,
    key_state_generator_loss,
    needing,
    preset,
    samples,
    stored_pairs,
    stored_state,
    stored_states,
    two_leg,
)
from fewstep.process import Process


@preset("accvideo")
def accvideo(
    process: Process,
    *,
    steps: int = 5,
    adversarial: float = 0.1,
    source: FeatureSource = samples,
    head: str = "point",
) -> Method:
    """AccVideo: jumps between stored key states of the teacher, and an adversary at each (arXiv 2503.19462).

        loss = E_k |u(x_k) - (x_k - x_{k+1}) / (t_k - t_{k+1})|^2 on stored x_k;
        + adversarial E_k softplus(-D_k(x_{k+1})),  x_{k+1} where the student's call k leads to

    Key states are those at the times of the student's steps. No data, no noising.

    Args:
        process: of the teacher.
        steps: calls of the student.
        adversarial: weight of the adversary; 0 leaves it out.
        source: where the discriminator's features come from; the teacher's last blocks in the paper.
        head: kind of the discriminator's heads.
    """
    chain = evenly(process, steps, fresh=0.0)
    terms = {
        "stored": flow_map_term(stored_pairs("consecutive", (*chain.times, 0.0)), two_leg(stored_state), stored_states),
    }
    if adversarial:
        terms["adversarial"] = key_state_generator_loss(source, adversarial)
    heads = Adversary(
        discriminator_heads(source, head, count=steps), key_state_discriminator_loss(source), UpdateRule()
    )
    return Method(
        terms,
        chain,
        rollout=backward_simulation(chain) if adversarial else None,
        adversary=heads if adversarial else None,
        needs=needing(store=True),
        settings=OptimizerSettings(learning_rate=5e-6),
    )
