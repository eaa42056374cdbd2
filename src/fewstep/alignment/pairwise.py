"""Pairwise losses: the margin between what was liked more and what was liked less, against the student as it began.

What blurs a few-step student, the pull to the mean of all data that a noisy state could come from, is common to both
members of a pair and cancels (PSO, arXiv 2410.03190).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fewstep.alignment.exploring import compare_rewards, law_at, laws_of, need_noise, rewards_of, walk
from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.distillation.times import TimeDistribution
from fewstep.errors import FewstepError
from fewstep.transition import Reduction, first_state, noise_like


@part
def pairwise_chain_loss(chain: Chain, beta: float = 50.0, clamp: float = 0.1, reduction: Reduction = "mean") -> Term:
    """PSO online: two runs of the student under each condition, ranked by the reward (arXiv 2410.03190).

        L = -log sigmoid(beta (h_0 log r_0 + h_1 log r_1)),   r_i = clamp(p(x_i) / p_ref(x_i), 1 - e, 1 + e)

    of every step but the last, h = (1, -1) where run 0 scores higher, (-1, 1) where run 1 does, 0 on ties, which count
    in the mean; a reward of several numbers (B, R) ranks by dominance. Outside of the clamp there is no gradient, and
    no force back. Costs two runs of the student, whose calls carry the gradient, and the reference at all calls but the
    last.

    Args:
        chain: how the student is run in the training; must have noise.
        beta: 50 in the paper, of the mean over a sample's numbers; divide it by their count for the sum.
        clamp: e.
        reduction: of the log density over a sample's numbers.

    Raises:
        FewstepError: a chain without noise.
    """
    need_noise(chain)

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        pair = batch.repeated(2)
        noise = unit_noise(networks, pair, generator)
        states, laws, clean = walk(chain, networks.student, pair, noise, generator)
        with torch.no_grad():
            before = laws_of(chain, networks.need("reference"), pair, states)
        scores = rewards_of(networks, clean, pair, several=True)
        preferred = compare_rewards(*scores.chunk(2))
        margins, inside = [], []
        for law, old, x in zip(laws, before, states[1:], strict=True):
            ratio = (law.log_prob(x, reduction) - old.log_prob(x, reduction)).exp()
            first, second = ratio.clamp(1 - clamp, 1 + clamp).log().chunk(2)
            margins.append(preferred * (first - second))
            inside.append(((ratio - 1).abs() < clamp).float().mean())
        margin = torch.stack(margins)
        numbers = {
            "reward": scores.mean(),
            "margin": margin.detach().mean(),
            "inside": torch.stack(inside).detach().mean(),
            "ties": (preferred == 0).float().mean(),
        }
        return -logsigmoid(beta * margin).mean(), numbers

    return loss


@part
def preference_loss(times: TimeDistribution, beta: float = 50.0, gamma: float = 1.0) -> Term:
    """Pairs of data, noised alike: PSO offline at the student's own times, Diffusion-DPO at all (arXiv 2311.12908).

        L = -log sigmoid(-beta [(l(x_w) - l_ref(x_w)) - gamma (l(x_l) - l_ref(x_l))])

    l: mean squared error of the network's own prediction; of a noise prediction the one that both papers have.
    Diffusion-DPO's published beta of 5000 is 2500 here, half of it being inside of its loss.

    Args:
        times: noise levels.
        beta: strength.
        gamma: weight of the rejected one; below 1 the loss is partly plain fine-tuning, which blurs.

    Raises:
        FewstepError: when called: the batch holds no pairs.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        pair, x, noise, t = _noised_pairs(times, networks, batch, samples, generator)
        error = own_error(networks.student, pair, x, noise, t)
        with torch.no_grad():
            before = own_error(networks.need("reference"), pair, x, noise, t)
        liked, rejected = (error - before).chunk(2)
        margin = gamma * rejected - liked
        return -logsigmoid(beta * margin).mean(), {"margin": margin.detach().mean(), "error": error.detach().mean()}

    return loss


@part
def dreambooth_loss(times: TimeDistribution, beta: float = 5.0, gamma: float = 0.1, keep: float = 0.5) -> Term:
    """PSO-DreamBooth as its code has it: a hinge without a reference (repository of arXiv 2410.03190).

        L = max(0, 1 + beta (l(x_w) - gamma l(x_l))) + keep l(x_l)

    With its settings beta gamma = keep: while the hinge is active what was rejected has no gradient at all, and the
    loss is plain fine-tuning of weight beta, which blurs. `preference_loss` is what was meant.

    Args:
        times: noise levels.
        beta: of the margin.
        gamma: of the rejected one in the margin.
        keep: weight of the denoising of the student's own samples.

    Raises:
        FewstepError: when called: the batch holds no pairs.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        pair, x, noise, t = _noised_pairs(times, networks, batch, samples, generator)
        liked, rejected = own_error(networks.student, pair, x, noise, t).chunk(2)
        hinge = (1 + beta * (liked - gamma * rejected)).clamp(min=0)
        numbers = {"active": (hinge > 0).float().mean(), "error": liked.detach().mean()}
        return (hinge + keep * rejected).mean(), numbers

    return loss


def _noised_pairs(
    times: TimeDistribution, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator
) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """The batch twice over, its liked and rejected samples, one noise and one time for both of each pair."""
    if batch.clean is None or batch.rejected is None:
        raise FewstepError("this loss needs pairs of a liked and a rejected sample", hint="Give votes (--pairs).")
    x = torch.cat([batch.clean, batch.rejected])
    t = times(batch.size, networks.student.process, generator, samples).repeat(2)
    noise = noise_like(tuple(batch.clean.shape), generator, x).repeat(2, *[1] * (x.ndim - 1))
    return batch.repeated(2), x, noise, t


@part
def chain_step_loss(chain: Chain, draws: int = 4, beta: float = 50.0, reduction: Reduction = "mean") -> Term:
    """Several next states of one state, the best against the worst: Flash-DMD's second stage (arXiv 2511.20549).

    Each step but the last of one run of the student; the run goes on from the best state. A next state is scored by the
    reward of the student's clean prediction there, or by the reward itself if it reads noisy states: its attribute
    `noise_aware`, then called with (states, batch, times (B,)).

    Args:
        chain: how the student is run in the training; must have noise.
        draws: next states per state; not published.
        beta: strength; not published.
        reduction: of the log density over a sample's numbers.

    Raises:
        FewstepError: a chain without noise, or fewer than two draws.
    """
    need_noise(chain)
    if draws < 2:
        raise FewstepError("a choice needs two next states at least", value=draws, hint="draws=4")

    def choose(networks: Networks, batch: Batch, states: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Best and worst of next states (draws B, ...), and all scores (draws, B)."""
        many = batch.repeated(draws)
        index = torch.full((len(states),), k)
        reward = networks.need("reward")
        if getattr(reward, "noise_aware", False):
            time = torch.full((len(states),), chain.times[k], dtype=torch.float64)
            scores = reward(states, many, time)
        else:
            scores = rewards_of(networks, chain.call(networks.student, many, states, index).clean, many)
        scores = scores.reshape(draws, batch.size)
        table, rows = states.reshape(draws, batch.size, *states.shape[1:]), torch.arange(batch.size)
        return table[scores.argmax(0), rows], table[scores.argmin(0), rows], scores

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        state = first_state(networks.student.process, chain.times[0], unit_noise(networks, batch, generator))
        values, rewards = [], []
        for k in range(len(chain) - 1):
            law = law_at(chain, networks.student, batch, state, k)
            with torch.no_grad():
                old = law_at(chain, networks.need("reference"), batch, state, k)
                noise = noise_like((draws, *state.shape), generator, state)
                spread = (law.mean + law.std * noise).flatten(0, 1)
                best, worst, scores = choose(networks, batch, spread, k + 1)
            better, worse = (law.log_prob(x, reduction) - old.log_prob(x, reduction) for x in (best, worst))
            different = (scores.amax(0) > scores.amin(0)).float()
            values.append(-logsigmoid(beta * different * (better - worse)))
            rewards.append(scores.mean())
            state = best
        return torch.stack(values).mean(), {"reward": torch.stack(rewards).mean()}

    return loss


def targets(network: Denoiser, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Clean x (B, ...) noised by unit noise at times t (B,), and what the network's own prediction should be there."""
    alpha, sigma = network.process.scales(t, x)
    a, b = network.prediction.weights(alpha, sigma)
    return alpha * x + sigma * noise, a * x + b * noise


def own_error(network: Denoiser, batch: Batch, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error (B,) of a network's own prediction, of clean x (B, ...) under unit noise at times (B,)."""
    noisy, wanted = targets(network, x, noise, t)
    return (network.raw(noisy, t, batch.condition) - wanted).square().flatten(1).mean(1)
