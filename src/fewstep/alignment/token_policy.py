"""Policy gradients on the reveals of a masked model: GRPO's discrete sibling (arXiv 2402.03300)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.discrete import RevealPlan, TokenDenoiser, token_transition
from fewstep.distillation.advantages import group_advantages
from fewstep.distillation.core import Loss
from fewstep.errors import FewstepError, PlanError


@torch.no_grad()
def walk_tokens(
    plan: RevealPlan, denoiser: TokenDenoiser, size: int, length: int, generator: torch.Generator
) -> list[Tensor]:
    """The states (B, L) of an ancestral sampler, from all masked to all revealed: steps + 1 of them."""
    _check(plan)
    z = torch.full((size, length), plan.process.mask)
    states = [z]
    for row in plan.rows:
        t, s = (torch.full((size,), at, dtype=torch.float64) for at in (row.time, row.next_time))
        uniform = torch.rand(size, length, generator=generator)
        z = token_transition(plan.process, z, denoiser(z), t, s).draw(uniform)
        states.append(z)
    return states


def path_log_prob(plan: RevealPlan, denoiser: TokenDenoiser, states: Sequence[Tensor]) -> Tensor:
    """Log-probability (B,) of a walk through states, with its gradient."""
    _check(plan)
    total = torch.zeros(len(states[0]))
    for row, z, after in zip(plan.rows, states[:-1], states[1:], strict=True):
        t, s = (torch.full((len(z),), at, dtype=torch.float64) for at in (row.time, row.next_time))
        total = total + token_transition(plan.process, z, denoiser(z), t, s).log_prob(after)
    return total


def token_policy_gradient(
    log_prob: Tensor,
    rewards: Tensor,
    *,
    reference: Tensor,
    before: Tensor | None = None,
    kl: float = 0.0,
    clip: float = 0.2,
    normalise: bool = True,
) -> Loss:
    """Rewarded walks against each other, kept near a reference model.

        R = r - kl log(p_old / p_ref),   A = R - mean R, over its deviation if normalised,   rho = p / p_old
        L = -mean min(rho A, clip(rho, 1 - clip, 1 + clip) A)

    The divergence of walks stands in the reward, so that the gradient is that of E[r] - kl KL(p || p_ref) without
    normalisation. Its optimum over all laws of walks has the samples' law p_ref(x) exp(r(x) / kl); a model whose
    reveals are independent may not reach it.

    Args:
        log_prob: log p of the walks (B,), with its gradient.
        rewards: (B,).
        reference: log p_ref of the walks (B,).
        before: log p_old (B,), of the model that drew them; the model as it is unless given.
        kl: weight of the divergence.
        clip: how far a ratio may move.
        normalise: divide by the standard deviation, as GRPO does; this changes the weight of the divergence.

    Raises:
        FewstepError: fewer than two walks, or rewards that are not finite.
    """
    if len(rewards) < 2:
        raise FewstepError("rewards are compared within a group: it needs two walks at least", value=len(rewards))
    if not bool(rewards.isfinite().all()):
        hint = "Leave those walks out."
        raise FewstepError("rewards must be finite", value=int((~rewards.isfinite()).sum()), hint=hint)
    old = log_prob.detach() if before is None else before
    away = (old - reference).detach()
    shaped = rewards.to(away) - kl * away
    advantage = group_advantages(shaped) if normalise else shaped - shaped.mean()
    ratio = (log_prob - old).exp()
    value = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    clipped = ((ratio.detach() - 1).abs() > clip).float().mean()
    return value, {"reward": rewards.mean(), "divergence": away.mean(), "clipped": clipped}


def _check(plan: RevealPlan) -> None:
    if any(row.order != "independent" or row.temperature != 1 or row.remask for row in plan.rows):
        hint = "Use reveal_plan(process, steps)."
        raise PlanError("a policy is an ancestral plan at temperature 1", value=plan.name, hint=hint)
