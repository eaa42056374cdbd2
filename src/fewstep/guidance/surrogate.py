"""Optimisation by conditional sampling: a regression surrogate, pseudo-labels, and what the regret is made of.

Few scored samples and many unscored ones (arXiv 2404.07771, section 5; 2307.07055): fit f_hat to the scored ones, label
all with f_hat + noise, sample given a label above the data's range (`target` for a pretrained denoiser, or a denoiser
trained with the labels as condition), and ask how much of the gain is real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError


@dataclass(frozen=True, eq=False)
class LinearSurrogate:
    """f_hat(x) = slope . x + offset: samples (B, ...) -> (B,); slope (D,), of the flattened sample."""

    slope: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (B,)."""
        return x.flatten(1) @ self.slope.to(x) + self.offset.to(x)


def ridge(x: Tensor, y: Tensor, penalty: float = 1.0) -> LinearSurrogate:
    """Ridge regression slope = (X^T X + penalty I)^-1 X^T y of centred samples; the offset is not penalised.

    Args:
        x: samples (N, ...).
        y: their scores (N,).
        penalty: of |slope|^2.

    Raises:
        FewstepError: another number of scores, or a negative penalty.
    """
    if y.shape != x.shape[:1] or not len(y):
        raise FewstepError("a surrogate needs one score per sample", value=(tuple(x.shape), tuple(y.shape)))
    if penalty < 0:
        raise FewstepError("a penalty is not negative", value=penalty, hint="Use 1.")
    flat, scores = x.flatten(1).double(), y.double()
    centred, middle = flat - flat.mean(0), scores.mean()
    gram = centred.T @ centred + penalty * torch.eye(flat.shape[1], dtype=torch.float64, device=flat.device)
    slope = torch.linalg.lstsq(gram, (centred.T @ (scores - middle))[:, None]).solution[:, 0]
    return LinearSurrogate(slope, middle - flat.mean(0) @ slope)


def pseudo_labels(score: Callable[[Tensor], Tensor], x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Labels f_hat(x) + N(0, std^2) of samples (N, ...), as (N,): the condition that a denoiser is trained with."""
    with torch.no_grad():
        scores = score(x)
    return scores + std * torch.randn(scores.shape, generator=generator).to(scores)


def regret(
    samples: Tensor,
    value: float,
    score: Callable[[Tensor], Tensor],
    surrogate: Callable[[Tensor], Tensor],
    data: Tensor,
) -> dict[str, float]:
    """How far samples fall short of a target, and why.

    Args:
        samples: (N, ...), drawn given `value`.
        value: the target a.
        score: the true score f, (N, ...) -> (N,).
        surrogate: f_hat, that the samples were drawn with.
        data: (M, ...), whose support samples should keep to.

    Returns:
        `regret` a - mean f = `missed` a - mean f_hat (the sampler's part) + `surrogate_gap` mean f_hat - f; beside them
        `off_support`: mean distance to the nearest datum, over that of data among themselves (1: as near as data).
    """
    with torch.no_grad():
        true, guessed = score(samples).double().mean(), surrogate(samples).double().mean()
    flat, known = samples.flatten(1).double(), data.flatten(1).double()
    own = torch.cdist(known, known).fill_diagonal_(torch.inf).amin(1).mean()
    return {
        "regret": float(value - true),
        "missed": float(value - guessed),
        "surrogate_gap": float(guessed - true),
        "off_support": float(torch.cdist(flat, known).amin(1).mean() / own),
    }
