"""Policy gradients on the student's own steps: GRPO (arXiv 2402.03300, on flows arXiv 2505.05470)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.alignment.exploring import laws_of, need_noise, rewards_of, walk
from fewstep.distillation.advantages import group_advantages
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.errors import FewstepError
from fewstep.transition import Reduction


@part
def policy_gradient(
    chain: Chain, group: int = 8, clip: float = 0.1, kl: float = 0.0, last: float = 0.0, reduction: Reduction = "mean"
) -> Term:
    """Runs of one condition against each other, every step but the last.

        A = (r - mean r) / std r  within each group,   rho = p / p_old
        L = -mean min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl mean KL(p || p_ref) - last mean r(clean)

    p_old is the slow student where the method keeps one (so many updates old), else the student itself: rho is 1 then,
    and the gradient is REINFORCE's. Without `kl` the reference is not called.

    Args:
        chain: how the student is run in the training; must have noise.
        group: runs per condition.
        clip: how far a ratio may move; of the mean over a sample's numbers ratios stay near 1.
        kl: weight of the divergence from the student as it began.
        last: weight of the reward's own gradient on the last call, which has no density; needs a differentiable reward.
        reduction: of log densities and divergences over a sample's numbers.

    Raises:
        FewstepError: a chain without noise, or groups of one.
    """
    need_noise(chain)
    if group < 2:
        raise FewstepError("a group needs two runs at least", value=group, hint="group=8")

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        many = batch.repeated(group)
        noise = unit_noise(networks, many, generator)
        old = networks.target
        live = old is None or old is networks.student
        if live or old is None:
            states, laws, clean = walk(chain, networks.student, many, noise, generator)
            before = [law.log_prob(x, reduction).detach() for law, x in zip(laws, states[1:], strict=True)]
        else:
            with torch.no_grad():
                states, stale, clean = walk(chain, old, many, noise, generator)
            before = [law.log_prob(x, reduction) for law, x in zip(stale, states[1:], strict=True)]
            laws = laws_of(chain, networks.student, many, states)
            if last:
                clean = chain.call(networks.student, many, states[-1], torch.full((many.size,), len(chain) - 1)).clean
        scores = rewards_of(networks, clean, many)
        advantage = group_advantages(scores.reshape(group, -1)).flatten()  # copies of a batch, one after the other
        ratios = [(law.log_prob(x, reduction) - b).exp() for law, x, b in zip(laws, states[1:], before, strict=True)]
        ratio = torch.stack(ratios)
        value = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        numbers = {"reward": scores.mean(), "clipped": ((ratio - 1).abs() > clip).float().mean()}
        if kl:
            with torch.no_grad():
                reference = laws_of(chain, networks.need("reference"), many, states)
            away = torch.stack([law.kl(other, reduction) for law, other in zip(laws, reference, strict=True)]).mean()
            value, numbers["kl"] = value + kl * away, away.detach()
        if last:
            value = value - last * differentiated(networks, clean, many).mean()
        return value, numbers

    return loss


def differentiated(networks: Networks, clean: Tensor, batch: Batch) -> Tensor:
    """The reward (B,) with its gradient.

    Raises:
        FewstepError: it has none.
    """
    found: Tensor = networks.need("reward")(clean, batch)
    if not found.requires_grad:
        raise FewstepError("this reward gives no gradient", hint="Set last=0, or give a differentiable reward.")
    return found
