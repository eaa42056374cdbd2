"""Weights of samples: positive numbers (B,) without gradient that multiply a loss or its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.score.view import NOTHING, Needs, ScorePredictions, guidance_needs
from fewstep.errors import FewstepError, nearest


class Weight(Protocol):
    """A weight per sample."""

    @property
    def needs(self) -> Needs:
        """Whose predictions are looked at."""

    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,), detached."""


@dataclass(frozen=True)
class ErrorNormalizer:
    """1 / max(mean |x - F^g|, floor): DMD's normaliser (arXiv 2311.18828, eq. 8), computed in float64."""

    guidance: float = 1.0
    floor: float = 1e-5

    @property
    def needs(self) -> Needs:
        """The teacher."""
        return guidance_needs("teacher", self.guidance)

    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,)."""
        away = (view.clean - view.guided("teacher", self.guidance)).detach().double().abs().flatten(1).mean(1)
        return 1 / away.clamp(min=self.floor)


@dataclass(frozen=True)
class ScaleWeight:
    """min(alpha^a sigma^s, most).

    (2, -2) is the signal-to-noise ratio and KL's own weight; (1, 0) is 1 - sigma on flows (few-step SiD). TDM's critic
    has (2, -2) with most 5 (arXiv 2503.06674).
    """

    alpha: float = 0.0
    sigma: float = 0.0
    most: float = float("inf")
    needs = NOTHING

    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,)."""
        process = networks.student.process
        weight = process.alpha(view.time) ** self.alpha * process.sigma(view.time) ** self.sigma
        return weight.clamp(max=self.most).to(view.noisy.device)


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


@dataclass(frozen=True)
class DensityRatioWeight:
    """h(r) of an f-divergence, r the density ratio data / student at x_t (f-distill, arXiv 2502.15681).

    clip:
        Bounds of r.
    level:
        Divide r by its running mean at this noise level, kept by the discriminator (its buffer `level`), and h by its
        mean over the batch.
    """

    kind: str
    odds: Odds = logit
    clip: tuple[float, float] = (0.1, 20.0)
    level: bool = True
    momentum: float = 0.05
    needs = NOTHING

    def __post_init__(self) -> None:
        if self.kind not in RATIOS:
            raise FewstepError("unknown divergence", value=self.kind, hint=nearest(self.kind, RATIOS))

    @torch.no_grad()
    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,)."""
        r = self.odds(networks, batch, view).double().exp().clamp(*self.clip)
        if not self.level:
            return RATIOS[self.kind](r)
        h = RATIOS[self.kind](r / self._levels(networks, view, r))
        return h / h.mean()

    def _levels(self, networks: Networks, view: ScorePredictions, r: Tensor) -> Tensor:
        """Running mean of r in each sample's bin of the time range, after this batch has moved it."""
        level: Tensor = networks.need("adversary").level
        share = view.time / networks.student.process.noisiest
        bins = (share * len(level)).long().clamp(0, len(level) - 1).to(r.device)
        count = torch.zeros(len(level), dtype=r.dtype, device=r.device).index_add(0, bins, torch.ones_like(r))
        mean = torch.zeros_like(count).index_add(0, bins, r) / count.clamp(min=1)
        moved = torch.where(count > 0, level + self.momentum * (mean - level), level)
        level.copy_(moved)
        return moved[bins]


@dataclass(frozen=True)
class RewardWeight:
    """exp(beta r(x)), r a reward of clean samples (B, ...) -> (B,): Re-DMD (arXiv 2512.04678)."""

    reward: Callable[[Tensor, Batch], Tensor]
    beta: float = 2.0
    needs = NOTHING

    @torch.no_grad()
    def __call__(self, networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
        """(B,)."""
        return (self.beta * self.reward(view.clean.detach(), batch).double()).exp()


def product(weights: tuple[Weight, ...], networks: Networks, batch: Batch, view: ScorePredictions) -> Tensor:
    """All weights multiplied, float64, shaped to multiply states."""
    total = torch.ones(len(view.noisy), dtype=torch.float64, device=view.noisy.device)
    for weight in weights:
        total = total * weight(networks, batch, view).to(total)
    return total.reshape(-1, *[1] * (view.noisy.ndim - 1))
