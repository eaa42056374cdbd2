"""Rules that follow a gradient: of a classifier at noisy states, of a reward at the clean prediction, of a target.

With C = Cov[x0 | x] = (sigma^2 / alpha) J and J = dx0_hat/dx (Tweedie's second order), the clean prediction of data
tilted by exp(r(x0)) is x0_hat + C grad r for a linear r and Gaussian data. C grad r is one gradient: (sigma^2 / alpha)
grad_x r(x0_hat(x)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.guidance.correction import Clean, Guidance
from fewstep.jacobian import plain_attention

Score = Callable[[Tensor], Tensor]
"""Samples (B, ...) -> one number each (B,), differentiable."""

NoisyLogProb = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy states (B, ...), alpha, sigma) -> log p(wanted class | state) (B,), differentiable."""


def classifier(log_prob: NoisyLogProb, scale: float = 1.0) -> Guidance:
    """x0 + scale (sigma^2 / alpha) grad_x log p(c | x_t) (arXiv 2105.05233): samples of p(x) p(c | x)^scale at scale 1.

    Args:
        log_prob: of a classifier that was trained on noisy states.
        scale: above 1 it is no tilt of the data's law, as for classifier-free guidance.
    """

    def rule(clean: Clean, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            state, kept = _point(x)
            slope = _gradient(log_prob(state, alpha, sigma), state, kept)
        return clean(x) + scale * sigma**2 / alpha * slope

    return rule


def reward_gradient(reward: Score, scale: float = 1.0, *, through: bool = True) -> Guidance:
    """x0 + scale C grad r(x0_hat): a first-order step towards the law p(x0) exp(scale r(x0)).

    Exact for a linear reward and Gaussian data, an approximation elsewhere (arXiv 2209.14687; `steer` has no bias).

    Args:
        reward: of clean predictions, which are blurry early on.
        scale: of the reward.
        through: C grad r by the derivative of the denoiser, which keeps to directions in which data vary; False: C is
            taken as sigma^2 / (alpha^2 + sigma^2), that of data with independent unit variances (arXiv
            2305.16317), at the cost of no backward pass through the network.
    """

    def rule(clean: Clean, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if not through:
            found = clean(x)
            with torch.enable_grad():
                point, kept = _point(found)
                slope = _gradient(reward(point), point, kept)
            return found + scale * sigma**2 / (alpha**2 + sigma**2) * slope
        with torch.enable_grad(), plain_attention():
            state, kept = _point(x)
            found = clean(state)
            slope = _gradient(reward(found), state, kept)
        return (found if kept else found.detach()) + scale * sigma**2 / alpha * slope

    return rule


def target(score: Score, value: float, std: float) -> Guidance:
    """Clean predictions given that score(x0) + N(0, std^2) = value.

        x0 + C g (value - f(x0_hat)) / (std^2 + g^T C g),       g = grad f(x0_hat)

    Exact for a linear score and Gaussian data, where sampling is optimisation by conditional diffusion (arXiv
    2307.07055). Without the term g^T C g, which is the gradient of -(value - f)^2 / (2 std^2), early steps overshoot.

    Args:
        score: what is steered, such as a surrogate of a costly reward.
        value: where to.
        std: how exactly, in units of the score; the deviation of the pseudo-labels' noise.

    Raises:
        FewstepError: a deviation that is not positive.
    """
    if not std > 0:
        raise FewstepError("a target needs a positive deviation", value=std, hint="Use the noise of the scores.")

    def rule(clean: Clean, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad(), plain_attention():
            state, kept = _point(x)
            found = clean(state)
            scored = score(found)
            slope = _gradient(scored, found, True)
            (back,) = torch.autograd.grad(found, state, slope, create_graph=kept)
        found, scored, slope = (n if kept else n.detach() for n in (found, scored, slope))
        moved = sigma**2 / alpha * back
        step = (value - scored) / (std**2 + (slope * moved).flatten(1).sum(1))
        return found + moved * step.reshape(-1, *[1] * (x.ndim - 1))

    return rule


def _point(x: Tensor) -> tuple[Tensor, bool]:
    """Where to differentiate, and whether an outer rule or a caller differentiates the result again."""
    kept = x.requires_grad and torch.is_grad_enabled()
    return (x, True) if kept else (x.detach().requires_grad_(), False)


def _gradient(value: Tensor, at: Tensor, kept: bool) -> Tensor:
    """Gradient of every sample's number; `kept`: the graph of it too.

    Raises:
        FewstepError: not one number per sample, or one that has no gradient.
    """
    if value.shape != at.shape[:1]:
        raise FewstepError("a score must be one number per sample", value=tuple(value.shape), hint="Return (B,).")
    if not value.requires_grad:
        hint = "Use a differentiable one, or `fewstep.guidance.steer`, which needs no gradient."
        raise FewstepError("the reward has no gradient with respect to the sample", hint=hint)
    return torch.autograd.grad(value.sum(), at, create_graph=kept)[0]
