"""The student's own chain as a policy: what it drew on the way, and how likely every network finds each step.

A chain with noise between its calls is a policy whose actions are the next states; the last call makes the sample
without noise, has no density, and is left out (or given the gradient of a reward).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.transition import Transition, first_state, noise_like


def need_noise(chain: Chain) -> None:
    """Refuse a chain without noise between its calls.

    Raises:
        FewstepError: deterministic, or of one call.
    """
    if not chain.stochastic:
        few = "One call has no step before the last: use refl or draft, or more steps."
        hint = few if len(chain) < 2 else "Explore with eta=0.5 (eta_steps) or noise anew (fresh=1)."
        raise FewstepError("a deterministic chain gives no probabilities of its steps", value=chain, hint=hint)


def walk(
    chain: Chain, student: Denoiser, batch: Batch, noise: Tensor, generator: torch.Generator
) -> tuple[list[Tensor], list[Transition], Tensor]:
    """The states at each call (B, ...), the law of each step, and the clean sample, from unit noise (B, ...).

    States are detached; laws and the clean sample carry the gradients of their own call alone, so that the calls that
    draw are also those whose densities are asked.

    Args:
        chain: of the student.
        student: who draws.
        batch: its conditions.
        noise: unit noise of the first states.
        generator: of the noise between calls, of which every sample has its own.
    """
    state = first_state(student.process, chain.times[0], noise)
    states, laws = [state], list[Transition]()
    for k in range(len(chain) - 1):
        laws.append(law_at(chain, student, batch, state, k))
        state = laws[-1].draw(noise_like(tuple(state.shape), generator, state)).detach()
        states.append(state)
    return states, laws, chain.call(student, batch, state, _index(state, len(chain) - 1)).clean


def laws_of(chain: Chain, network: Denoiser, batch: Batch, states: list[Tensor]) -> list[Transition]:
    """What another network finds the laws of the steps between these states (K, each (B, ...)): K - 1 calls."""
    return [law_at(chain, network, batch, state, k) for k, state in enumerate(states[:-1])]


def rewards_of(networks: Networks, samples: Tensor, batch: Batch, *, several: bool = False) -> Tensor:
    """The reward (B,) of samples (B, ...), without a gradient.

    several: the reward may be several ones, (B, R).

    Raises:
        FewstepError: not one number per sample.
        NonFiniteError: a score is NaN or infinite.
    """
    with torch.no_grad():
        scores: Tensor = networks.need("reward")(samples.detach(), batch)
    if len(scores) != len(samples) or scores.ndim > 1 + several:
        hint = "Return (B,), a weighted sum of several; (B, R) is for pso, which compares pairs by dominance."
        raise FewstepError("the reward is not one number per sample", value=tuple(scores.shape), hint=hint)
    if not bool(scores.isfinite().all()):
        hint = "Look at what the reward gets: pictures in [0, 1] and their prompts."
        raise NonFiniteError("the reward is NaN or infinite", value=scores[~scores.isfinite()][0].item(), hint=hint)
    return scores.to(samples.device)


def compare_rewards(first: Tensor, second: Tensor) -> Tensor:
    """Who is better (B,): 1 the first, -1 the second, 0 neither; of rewards (B,), or several (B, R).

    Of several a sample is better that is so in one and worse in none (Pareto dominance).
    """
    away = (first - second).sign().reshape(len(first), -1)
    least, most = away.amin(1), away.amax(1)
    return torch.where(least >= 0, most, torch.where(most <= 0, least, torch.zeros_like(least)))


def law_at(chain: Chain, network: Denoiser, batch: Batch, state: Tensor, k: int) -> Transition:
    """What a network finds the law of the step from these states (B, ...) at call k: one call."""
    clean = chain.call(network, batch, state, _index(state, k)).clean
    return chain.transition(network.process, k, state, clean)


def _index(state: Tensor, k: int) -> Tensor:
    return torch.full((len(state),), k)
