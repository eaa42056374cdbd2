"""Forward-process contrastive tuning: DiffusionNFT (arXiv 2509.16117), which needs neither noise nor densities.

It denoises. What it learns where samples are better than their group is the mean of the data that a noisy state could
come from: right for a many-step network, whose outputs are such means, and a blur for a few-step student, whose
outputs are samples. `tests/alignment` shows both; the preset therefore wants to be told.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.alignment.exploring import rewards_of
from fewstep.alignment.pairwise import targets
from fewstep.distillation.advantages import group_advantages
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.distillation.times import TimeDistribution
from fewstep.errors import FewstepError
from fewstep.transition import noise_like


@part
def forward_contrastive(chain: Chain, times: TimeDistribution, group: int = 8, beta: float = 1.0) -> Term:
    """Samples of the old student, noised: towards them where they are good, away from them where they are bad.

        L = mean r |n+ - n|^2 + (1 - r) |n- - n|^2,   n+- = (1 -+ beta) n_old +- beta n_theta,
        r = 1/2 + 1/2 clip(A, -1, 1),   A the reward against its group in standard deviations

    n is the network's own prediction, n_old that of the slow student where there is one, else its value now.

    Args:
        chain: how the old student draws.
        times: noise levels.
        group: samples per condition.
        beta: as in the formula.

    Raises:
        FewstepError: groups of one.
    """
    if group < 2:
        raise FewstepError("a group needs two samples at least", value=group, hint="group=8")

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        many, old = batch.repeated(group), networks.target or networks.student
        with torch.no_grad():
            clean = chain.sample(old, unit_noise(networks, many, generator), many.condition, generator)
        scores = rewards_of(networks, clean, many)
        good = optimality(scores, group).reshape(-1, *[1] * (clean.ndim - 1))
        t = times(many.size, networks.student.process, generator, samples)
        noise = noise_like(tuple(clean.shape), generator, clean)
        noisy, wanted = targets(networks.student, clean, noise, t)
        new = networks.student.raw(noisy, t, many.condition)
        if old is networks.student:
            before = new.detach()
        else:
            with torch.no_grad():
                before = old.raw(noisy, t, many.condition)
        towards = (1 - beta) * before + beta * new - wanted
        away = (1 + beta) * before - beta * new - wanted
        value = (good * towards.square() + (1 - good) * away.square()).mean()
        return value, {"reward": scores.mean()}

    return loss


def optimality(scores: Tensor, group: int) -> Tensor:
    """r (G B,) in [0, 1] of scores (G B,), copies of a batch one after the other: 1/2 for the mean of a group."""
    return 0.5 + 0.5 * group_advantages(scores.reshape(group, -1), most=1.0).flatten()
