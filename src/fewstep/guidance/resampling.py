"""Feynman-Kac steering: particles that run a plan and are resampled by their reward, for rewards without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.executor import Noise, generator_of
from fewstep.plan import Plan
from fewstep.plan.combination import is_exactly
from fewstep.plan.history import History, ready_rows


@dataclass(frozen=True, eq=False)
class Particles:
    """What came out: samples of a tilted law.

    Attributes:
        samples: (B, ...), after the last resampling of equal weight.
        rewards: of the samples (B,).
        effective: effective number of particles before each row, and at the end, (K + 1,).
        resampled: whether they were resampled there, (K + 1,).
    """

    samples: Tensor
    rewards: Tensor
    effective: Tensor
    resampled: Tensor


def steer(
    plan: Plan,
    denoiser: Denoiser,
    reward: Callable[[Tensor], Tensor],
    *,
    seeds: Sequence[int],
    shape: Sequence[int],
    scale: float = 1.0,
    threshold: float = 0.5,
) -> Particles:
    """Samples of p(x) exp(scale r(x)), p the law of the plan's samples, by sequential Monte Carlo (arXiv 2501.06848).

    Before row k every particle has the potential exp(scale r(x0_hat(x_k))); its weight is that potential over the one
    before, and the last one is that of the sample itself, so that the weights' product is exp(scale r(x)). Particles
    that are copies of one part again in the next stochastic row. The law is exact as the number of particles grows,
    whatever the intermediate potentials; these decide the variance.

    Args:
        plan: with noise in some row; each row asks the network once.
        denoiser: its network with conditions bound; reads the clean prediction by the plan's own prediction.
        reward: samples (B, ...) -> (B,), of clean predictions and of samples.
        seeds: one per particle: its noise belongs to the place, not to the ancestor.
        shape: of one sample.
        scale: of the reward.
        threshold: particles are resampled where their effective number falls below this part of them; 1: always.

    Raises:
        FewstepError: a plan without noise, fewer than two particles, a reward of another shape or that is not finite.
    """
    _check(plan, seeds, threshold)
    rows, noise, drawing = ready_rows(plan, "cpu", torch.float32), Noise(seeds), generator_of(seeds[0])
    history, x = History.of(plan, rows), noise.draw(shape) * plan.prior_scale + plan.prior_offset
    weights, before = torch.zeros(len(seeds), dtype=torch.float64), torch.zeros(len(seeds), dtype=torch.float64)
    effective: list[float] = []
    resampled: list[bool] = []
    with torch.no_grad():
        for k, row in enumerate(rows):
            raw = denoiser.network(row.input_scale * x, torch.as_tensor(float(row.network_time))).to(x)
            potential = scale * _scored(reward, history.estimate(k, x, raw))
            weights, before = weights + potential - before, potential
            chosen = ancestors(weights, threshold, drawing, effective, resampled)
            if chosen is not None:
                x, raw, before, weights = x[chosen], raw[chosen], before[chosen], torch.zeros_like(weights)
                for kept in (history.states, history.outputs):
                    kept.update({j: value[chosen] for j, value in kept.items()})
            x = history.advance(k, x, raw, None if is_exactly(row.noise, 0.0) else noise.draw(shape))
        rewards = _scored(reward, x)
        chosen = ancestors(weights + scale * rewards - before, 1.0, drawing, effective, resampled)
    if chosen is not None:
        x, rewards = x[chosen], rewards[chosen]
    return Particles(x, rewards, torch.tensor(effective), torch.tensor(resampled))


def _check(plan: Plan, seeds: Sequence[int], threshold: float) -> None:
    if all(is_exactly(row.noise, 0.0) for row in plan.rows):
        hint = "Use a stochastic solver, such as `ddim` with eta=1 or `consistency`: copies must part again."
        raise FewstepError("resampling needs a plan with noise", value=plan.origin.get("solver"), hint=hint)
    if len(seeds) < 2:
        raise FewstepError("resampling needs several particles", value=len(seeds), hint="Use 64 seeds.")
    if not 0 <= threshold <= 1:
        raise FewstepError("the threshold is a part of the particles", value=threshold, hint="Use 0.5.")


def _scored(reward: Callable[[Tensor], Tensor], clean: Tensor) -> Tensor:
    found = reward(clean).detach().double().cpu()
    if found.shape != clean.shape[:1] or not bool(found.isfinite().all()):
        hint = "Return one finite number per sample; clamp rewards that may be infinite."
        raise FewstepError("a reward does not fit the particles", value=tuple(found.shape), hint=hint)
    return found


def ancestors(
    weights: Tensor, threshold: float, generator: torch.Generator, effective: list[float], resampled: list[bool]
) -> Tensor | None:
    """Ancestors (B,) by systematic resampling, None where the log-weights (B,) are still even.

    Notes the effective number of particles in `effective`, and in `resampled` whether it fell below the threshold.
    """
    share = weights.softmax(0)
    effective.append(float(1 / share.square().sum()))
    resampled.append(effective[-1] < threshold * len(weights) * (1 - 1e-9))
    if not resampled[-1]:
        return None
    places = (torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(len(weights))) / len(weights)
    return torch.searchsorted(share.cumsum(0), places).clamp(max=len(weights) - 1)
