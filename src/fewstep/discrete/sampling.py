"""The executor of plans of reveals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.discrete.denoiser import TokenDenoiser
from fewstep.discrete.plan import Reveal, RevealPlan
from fewstep.discrete.process import MaskedDiffusion
from fewstep.discrete.transition import inverse_cdf, reveal_probability
from fewstep.errors import FewstepError, NonFiniteError, PlanError
from fewstep.executor import generator_of


@torch.no_grad()
def sample_tokens(
    plan: RevealPlan,
    denoiser: TokenDenoiser,
    *,
    seeds: Sequence[int],
    length: int | None = None,
    prompt: Tensor | None = None,
    device: torch.device | str = "cpu",
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run a plan of reveals and return the tokens (B, L).

    Each sample draws from a stream of its own, so that it is the same in any batch; nothing in the loop waits for the
    device.

    Args:
        plan: of reveals.
        denoiser: of the same process.
        seeds: one per sample; B = len(seeds).
        length: L, all masked at the start; or give a prompt.
        prompt: tokens (B, L) or (L,), masked where they are to be found; the others are never changed.
        callback: called after each row with the rows done and the tokens (B, L).

    Raises:
        PlanError: the plan was made for another process.
        FewstepError: neither a length nor a prompt, or a prompt with other symbols.
        NonFiniteError: the network returned NaN.
    """
    process = denoiser.process
    if plan.process != process:
        hint = f"Made for {plan.process}, the network's is {process}."
        raise PlanError("this plan of reveals was made for another process", value=plan.name, hint=hint)
    z = _start(process, len(seeds), length, prompt).to(device)
    streams = [generator_of(seed) for seed in seeds]
    draws = torch.stack([torch.rand(plan.steps, 3, z.shape[1], generator=g) for g in streams]).to(device)
    free = z == process.mask
    count = free.sum(1)
    for k, row in enumerate(plan.rows):
        z = _advance(process, row, z, denoiser(z), draws[:, k], free, count)
        if callback is not None:
            callback(k + 1, z)
    if bool((z == process.mask).any()):
        raise NonFiniteError("some tokens were never revealed", hint="The network returned NaN: check its weights.")
    return z


def _start(process: MaskedDiffusion, size: int, length: int | None, prompt: Tensor | None) -> Tensor:
    if (length is None) == (prompt is None):
        raise FewstepError("a sample begins with a length or with a prompt", value=length, hint="Give one of them.")
    if prompt is None:
        return torch.full((size, length or 0), process.mask)
    if bool(((prompt < 0) | (prompt >= process.tokens)).any()):
        raise FewstepError(f"a prompt has symbols from 0 to {process.tokens - 1}", value=int(prompt.max()))
    return prompt.long().expand(size, -1).clone()


def _advance(
    process: MaskedDiffusion, row: Reveal, z: Tensor, log_p: Tensor, draws: Tensor, free: Tensor, count: Tensor
) -> Tensor:
    """Tokens after a row, for uniform numbers (B, 3, L); `count` (B,) of the positions `free` (B, L) were masked."""
    which, token, again = draws.unbind(1)
    masked = z == process.mask
    if row.temperature != 1:
        log_p = (log_p / row.temperature).log_softmax(2)
    drawn = inverse_cdf(log_p, token)
    if row.next_time == 0:
        return torch.where(masked, drawn, z)
    if row.order == "independent":
        chosen = which < reveal_probability(process, row.time, row.next_time, row.remask).to(which)
    else:
        chosen = _ranked(process, row, log_p, drawn, which, masked, count)
    kept = torch.where(free & (again < row.remask), process.mask, z)
    return torch.where(masked, torch.where(chosen, drawn, z), kept)


def _ranked(
    process: MaskedDiffusion, row: Reveal, log_p: Tensor, drawn: Tensor, which: Tensor, masked: Tensor, count: Tensor
) -> Tensor:
    """Which masked positions (B, L) come first in the row's order."""
    entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(2)
    score = {
        "random": which,
        "confidence": -log_p.gather(2, drawn[..., None]).squeeze(2),
        "entropy": entropy,
        "entropy-bound": entropy,
    }[row.order]
    ranked = torch.where(masked, score, torch.inf).argsort(dim=1, stable=True)
    if row.order == "entropy-bound":
        sorted_ = entropy.gather(1, ranked)
        first = sorted_.cumsum(1) - sorted_ <= row.bound  # in rising order the largest is the last
        first[:, 0] = True
    else:
        left = (1 - process.alpha(row.next_time)) / (1 - process.alpha(1.0))
        revealed = masked.sum(1) - (count * left.to(which)).floor().long()
        first = torch.arange(masked.shape[1], device=masked.device) < revealed[:, None]
    return masked & torch.zeros_like(masked).scatter(1, ranked, first)
