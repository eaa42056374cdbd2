"""Feynman-Kac steering of masked tokens: sequences that are resampled by their value while they are revealed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.discrete import RevealPlan, TokenDenoiser, token_transition
from fewstep.errors import FewstepError, PlanError
from fewstep.guidance.resampling import Particles, ancestors


@torch.no_grad()
def steer_tokens(
    plan: RevealPlan,
    denoiser: TokenDenoiser,
    reward: Callable[[Tensor], Tensor],
    *,
    count: int,
    length: int,
    generator: torch.Generator,
    value: Callable[[Tensor], Tensor] | None = None,
    threshold: float = 0.5,
) -> Particles:
    """Samples of p(x) exp(r(x)), p the law of an ancestral plan (arXiv 2501.06848, on tokens).

    After every row but the last each particle has the potential exp(value(z)); its weight is that potential over the
    one before, and the last one is exp(r(x)), so that the weights' product is that of the tilt. The law is exact as the
    number of particles grows, whatever the value: it decides the variance.

    Args:
        plan: independent reveals at temperature 1, nothing masked again.
        denoiser: of the law to be tilted.
        reward: revealed tokens (B, L) -> (B,), asked once per particle.
        count: particles.
        length: of a sequence.
        generator: of all draws.
        value: tokens with masks (B, L) -> (B,); without it particles are weighted at the end alone.
        threshold: particles are resampled where their effective number falls below this part of them.

    Raises:
        PlanError: another plan.
        FewstepError: fewer than two particles, or values that are not finite.
    """
    if any(row.order != "independent" or row.temperature != 1 or row.remask for row in plan.rows):
        raise PlanError("particles need an ancestral plan at temperature 1", value=plan.name)
    if count < 2:
        raise FewstepError("resampling needs several particles", value=count, hint="Use 64.")
    process, effective, resampled = plan.process, list[float](), list[bool]()
    z, weights = torch.full((count, length), process.mask), torch.zeros(count, dtype=torch.float64)
    before = torch.zeros(count, dtype=torch.float64)
    for k, row in enumerate(plan.rows):
        t, s = (torch.full((count,), at, dtype=torch.float64) for at in (row.time, row.next_time))
        uniform = torch.rand(count, length, generator=generator)
        z = token_transition(process, z, denoiser(z), t, s).draw(uniform)
        last = k == plan.steps - 1
        potential = _values(reward if last else value, z)
        weights, before = weights + potential - before, potential
        chosen = ancestors(weights, 1.0 if last else threshold, generator, effective, resampled)
        if chosen is not None:
            z, before, weights = z[chosen], before[chosen], torch.zeros_like(weights)
    return Particles(z, before, torch.tensor(effective), torch.tensor(resampled))


def _values(value: Callable[[Tensor], Tensor] | None, z: Tensor) -> Tensor:
    if value is None:
        return torch.zeros(len(z), dtype=torch.float64)
    found = value(z).double()
    if found.shape != z.shape[:1] or not bool(found.isfinite().all()):
        hint = "Give one finite number per sequence; a score that may be NaN needs a lowest one in its place."
        raise FewstepError("a value does not fit the particles", value=tuple(found.shape), hint=hint)
    return found
