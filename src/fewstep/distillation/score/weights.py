"""Weights of samples: positive numbers (B,) without gradient that multiply a loss or its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Networks, SampleReward
from fewstep.distillation.part import part
from fewstep.distillation.score.view import NOTHING, Needs, ScorePredictions, guidance_needs
from fewstep.errors import FewstepError, nearest


@dataclass(frozen=True)
class Weight:
    """A weight per sample.

    Attributes:
        of: (networks, batch, predictions) -> (B,), detached.
        needs: whose predictions it looks at.
    """

    of: Callable[[Networks, Batch, ScorePredictions], Tensor]
    needs: Needs = NOTHING

    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,), detached."""
        return self.of(networks, batch, view)


@part
def error_normalizer(guidance: float = 1.0, floor: float = 1e-5) -> Weight:
    """1 / max(mean |x - F^g|, floor): DMD's normaliser (arXiv 2311.18828, eq. 8), computed in float64."""

    def of(networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        away = (view.clean - view.guided("teacher", guidance)).detach().double().abs().flatten(1).mean(1)
        return 1 / away.clamp(min=floor)

    return Weight(of, guidance_needs("teacher", guidance))


@part
def scale_weight(alpha: float = 0.0, sigma: float = 0.0, most: float = float("inf")) -> Weight:
    """min(alpha^a sigma^s, most).

    (2, -2) is the signal-to-noise ratio and KL's own weight; (1, 0) is 1 - sigma on flows (few-step SiD). TDM's critic
    has (2, -2) with most 5 (arXiv 2503.06674).
    """

    def of(networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        process = networks.student.process
        weight = process.alpha(view.time) ** alpha * process.sigma(view.time) ** sigma
        return weight.clamp(max=most).to(view.noisy.device)

    return Weight(of)


Odds = Callable[[Networks, Batch, ScorePredictions], Tensor]
"""log(p_data / p_student) at the noisy states, (B,)."""


def logit(networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
    """The discriminator's mean logit on the features that the branch watched: an estimate of the log ratio.

    Raises:
        FewstepError: the branch watched none.
    """
    if not view.features:
        raise FewstepError("the density ratio is read from features", hint="Give the branch the adversary's `taps`.")
    return networks.need("adversary")(view.features).flatten(1).mean(1)


RATIOS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: r / (1 + r),
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "neyman": lambda r: 1 / r,
    "hellinger": torch.sqrt,
    "jeffreys": lambda r: 1 + r,
}
"""h(r) = r^2 f''(r) of the divergences of arXiv 2502.15681, table 1, up to constants."""


@part
def density_ratio_weight(
    kind: str,
    odds: Odds = logit,
    clip: tuple[float, float] = (0.1, 20.0),
    level: bool = True,
    momentum: float = 0.05,
) -> Weight:
    """h(r) of an f-divergence, r the density ratio data / student at x_t (f-distill, arXiv 2502.15681).

    Args:
        kind: of the divergence, one of `RATIOS`.
        odds: log r.
        clip: bounds of r.
        level: divide r by its running mean at this noise level, kept by the discriminator (its buffer `level`), and h
            by its mean over the batch.
        momentum: of that mean.

    Raises:
        FewstepError: another divergence.
    """
    if kind not in RATIOS:
        raise FewstepError("unknown divergence", value=kind, hint=nearest(kind, RATIOS))

    @torch.no_grad()
    def of(networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        r = odds(networks, batch, view).double().exp().clamp(*clip)
        if not level:
            return RATIOS[kind](r)
        h = RATIOS[kind](r / _levels(networks, view, r, momentum))
        return h / h.mean()

    return Weight(of)


def _levels(networks: Networks, view: ScorePredictions, r: Tensor, momentum: float) -> Tensor:
    """Running mean of r in each sample's bin of the time range, after this batch has moved it."""
    level: Tensor = networks.need("adversary").level
    share = view.time / networks.student.process.noisiest
    bins = (share * len(level)).long().clamp(0, len(level) - 1).to(r.device)
    count = torch.zeros(len(level), dtype=r.dtype, device=r.device).index_add(0, bins, torch.ones_like(r))
    mean = torch.zeros_like(count).index_add(0, bins, r) / count.clamp(min=1)
    moved = torch.where(count > 0, level + momentum * (mean - level), level)
    level.copy_(moved)
    return moved[bins]


@part
def reward_weight(reward: SampleReward | None = None, beta: float = 2.0, most: float = math.inf) -> Weight:
    """exp(beta r(x)), r a reward of clean samples (B, ...) -> (B,): Re-DMD (arXiv 2512.04678).

    A student that matches the teacher is not moved by any weight: this shifts what a limited student gives up.

    Args:
        reward: the training's unless given.
        beta: strength; 1 / beta of the paper.
        most: bound of the weight; rewards in deviations of 3 have one of 400.
    """

    @torch.no_grad()
    def of(networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        scores = (reward or networks.need("reward"))(view.clean.detach(), batch)
        return (beta * scores.double()).exp().clamp(max=most)

    return Weight(of)


def product(weights: tuple[Weight, ...], networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
    """All weights multiplied, float64, shaped to multiply states."""
    total = torch.ones(len(view.noisy), dtype=torch.float64, device=view.noisy.device)
    for weight in weights:
        total = total * weight(networks, batch, view).to(total)
    return total.reshape(-1, *[1] * (view.noisy.ndim - 1))
