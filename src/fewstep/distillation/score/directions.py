"""Directions: which way a loss moves the student's samples x, from what teacher F and critic G say about x_t.

`distribution_matching`, `score_sampling`, `guidance_difference` and their `weighted_sum` give delta, and x moves along
-delta, without back-propagation through F or G. `score_identity` differentiates through x_t into both networks.
`through` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.distances import Slope
from fewstep.distillation.part import part
from fewstep.distillation.score.view import Needs, ScorePredictions, guidance_needs
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class Direction:
    """Gradient of a loss with respect to the student's samples.

    Attributes:
        needs: whose predictions it looks at.
        gradient: (predictions, slope) -> gradient (B, ...) and value of the loss (B,), both detached.
        delta: predictions -> delta (B, ...) of a vector direction; None for the others.
        through: whether the gradient flows through x_t into teacher and critic.
    """

    needs: Needs
    gradient: Callable[[ScorePredictions, Slope], tuple[Tensor, Tensor]]
    delta: Callable[[ScorePredictions], Tensor] | None = None
    through: bool = False


def vector(needs: Needs, delta: Callable[[ScorePredictions], Tensor]) -> Direction:
    """The direction of 1/2 |x - sg(x - d'(delta))|^2-like losses: x moves along -d'(delta)."""

    def gradient(view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        difference = delta(view)
        found = slope(difference)
        return found, 0.5 * (found * difference).flatten(1).mean(1)

    return Direction(needs, gradient, delta)


@part
def distribution_matching(guidance: float = 1.0, critic_guidance: float = 1.0) -> Direction:
    """delta = G^k - F^g, the reverse KL: (g, k) = (1, 1) Diff-Instruct, (g, 1) DMD, (g, g) LSG, (1, 0) Zero-CFG.

    Anti-CFG is (1, -1); superscripts are guidance scales (arXiv 2311.18828, 2406.01561, 2505.12674).
    """

    def delta(view: ScorePredictions) -> Tensor:
        return view.guided("critic", critic_guidance) - view.guided("teacher", guidance)

    return vector(guidance_needs("teacher", guidance) | guidance_needs("critic", critic_guidance), delta)


@part
def score_sampling(guidance: float = 1.0) -> Direction:
    """delta = x - F^g: score distillation sampling (DreamFusion, arXiv 2209.14988), whose critic is the sample itself.

    (eps_phi - eps) = (alpha / sigma) (x - F): with the weight `scale_weight(1, 1)` that is sigma^2 (eps_phi - eps).
    """
    return vector(guidance_needs("teacher", guidance), lambda view: view.clean - view.guided("teacher", guidance))


@part
def guidance_difference(who: str = "teacher") -> Direction:
    """delta = F_u - F_c, the guidance of the teacher alone: CA of Decoupled DMD (arXiv 2511.22677)."""

    def delta(view: ScorePredictions) -> Tensor:
        return view.guided(who, 0) - view.guided(who, 1)

    return vector(frozenset({who, f"{who}_free"}), delta)


@part
def weighted_sum(parts: tuple[tuple[float, Direction], ...]) -> Direction:
    """A combination of vector directions at one re-noising: they share the calls of teacher and critic.

    Args:
        parts: (scale, vector direction).

    Raises:
        FewstepError: a direction that has no delta.
    """
    vectors = [(scale, direction.delta) for scale, direction in parts]
    if any(delta is None for _, delta in vectors):
        raise FewstepError("only vector directions can be added", hint="Give the others terms of their own.")

    def delta(view: ScorePredictions) -> Tensor:
        return torch.stack([scale * delta(view) for scale, delta in vectors if delta is not None]).sum(0)

    return vector(frozenset().union(*(direction.needs for _, direction in parts)), delta)


@part
def score_identity(alpha: float = 1.0, guidance: float = 1.0, critic_guidance: float = 1.0) -> Direction:
    """L = d'(F - G) . [(F - x) - alpha (F - G)], differentiated through x_t: SiD (arXiv 2404.04057), SIM at alpha = 1.

    alpha 1/2 is half the exact Fisher gradient, 1 the gradient with the sampling law frozen; at 1.2 the update reverses
    where the student's noised variance exceeds 3.5 times the teacher's.
    """

    def gradient(view: ScorePredictions, slope: Slope) -> tuple[Tensor, Tensor]:
        """The samples must be a leaf that asks for its gradient, and x_t must depend on it."""
        F, G = view.guided("teacher", guidance), view.guided("critic", critic_guidance)
        gap = F - G
        value = (slope(gap) * ((F - view.clean) - alpha * gap)).flatten(1).sum(1)
        # only x is asked for: no gradient of the weights is computed, and both graphs are freed before the student's
        (found,) = torch.autograd.grad(value.sum(), view.clean)
        return found, value.detach() / gap[0].numel()

    needs = guidance_needs("teacher", guidance) | guidance_needs("critic", critic_guidance)
    return Direction(needs, gradient, through=True)
