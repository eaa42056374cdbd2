"""Directions: which way a loss moves the student's samples x, from what teacher F and critic G say about x_t.

`DistributionMatching`, `GuidanceDifference` and their `WeightedSum` give delta, and x moves along -delta, without
back-propagation through F or G. `ScoreIdentity` differentiates through x_t into both networks. `through` says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.distillation.distances import Slope
from fewstep.distillation.score.view import Needs, ScorePredictions, guidance_needs


class Direction(Protocol):
    """Gradient of a loss with respect to the student's samples."""

    @property
    def needs(self) -> Needs:
        """Whose predictions are looked at."""

    @property
    def through(self) -> bool:
        """Whether the gradient flows through x_t into teacher and critic."""

    def gradient(self, view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """(gradient (B, ...), value of the loss (B,)), both detached."""


@dataclass(frozen=True)
class DistributionMatching:
    """delta = G^k - F^g, the reverse KL: (g, k) = (1, 1) Diff-Instruct, (g, 1) DMD, (g, g) LSG, (1, 0) Zero-CFG.

    Anti-CFG is (1, -1); superscripts are guidance scales (arXiv 2311.18828, 2406.01561, 2505.12674).
    """

    guidance: float = 1.0
    critic_guidance: float = 1.0
    through = False

    @property
    def needs(self) -> Needs:
        """Teacher and critic."""
        return guidance_needs("teacher", self.guidance) | guidance_needs("critic", self.critic_guidance)

    def delta(self, view: ScorePredictions) -> Tensor:
        """(B, ...)."""
        return view.guided("critic", self.critic_guidance) - view.guided("teacher", self.guidance)

    def gradient(self, view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """(gradient, value)."""
        return vector(self.delta(view), slope)


@dataclass(frozen=True)
class GuidanceDifference:
    """delta = F_u - F_c, the guidance of the teacher alone: CA of Decoupled DMD (arXiv 2511.22677)."""

    who: str = "teacher"
    through = False

    @property
    def needs(self) -> Needs:
        """One network with and without condition."""
        return frozenset({self.who, f"{self.who}_free"})

    def delta(self, view: ScorePredictions) -> Tensor:
        """(B, ...)."""
        return view.guided(self.who, 0) - view.guided(self.who, 1)

    def gradient(self, view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """(gradient, value)."""
        return vector(self.delta(view), slope)


@dataclass(frozen=True)
class WeightedSum:
    """A combination of vector directions at one re-noising: they share the calls of teacher and critic."""

    parts: tuple[tuple[float, DistributionMatching | GuidanceDifference], ...]
    through = False

    @property
    def needs(self) -> Needs:
        """Those of all parts."""
        return frozenset().union(*(part.needs for _, part in self.parts))

    def delta(self, view: ScorePredictions) -> Tensor:
        """(B, ...)."""
        return torch.stack([scale * part.delta(view) for scale, part in self.parts]).sum(0)

    def gradient(self, view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """(gradient, value)."""
        return vector(self.delta(view), slope)


@dataclass(frozen=True)
class ScoreIdentity:
    """L = d'(F - G) . [(F - x) - alpha (F - G)], differentiated through x_t: SiD (arXiv 2404.04057), SIM at alpha = 1.

    alpha 1/2 is half the exact Fisher gradient, 1 the gradient with the sampling law frozen; at 1.2 the update reverses
    where the student's noised variance exceeds 3.5 times the teacher's.
    """

    alpha: float = 1.0
    guidance: float = 1.0
    critic_guidance: float = 1.0
    through = True

    @property
    def needs(self) -> Needs:
        """Teacher and critic."""
        return guidance_needs("teacher", self.guidance) | guidance_needs("critic", self.critic_guidance)

    def gradient(self, view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """(gradient, value); view.clean must be a leaf that asks for its gradient, and noisy must depend on it."""
        F, G = view.guided("teacher", self.guidance), view.guided("critic", self.critic_guidance)
        gap = F - G
        value = (slope(gap) * ((F - view.clean) - self.alpha * gap)).flatten(1).sum(1)
        # only x is asked for: no gradient of the weights is computed, and both graphs are freed before the student's
        (gradient,) = torch.autograd.grad(value.sum(), view.clean)
        return gradient, value.detach() / gap[0].numel()


def vector(delta: Tensor, slope: Slope) -> tuple[Tensor, Tensor]:
    """Gradient and value of 1/2 |x - sg(x - d'(delta))|^2-like losses."""
    gradient = slope(delta)
    return gradient, 0.5 * (gradient * delta).flatten(1).mean(1)
