"""Distances per sample, and their gradients: (B, ...), (B, ...) -> (B,).

Flow maps measure how far the student's jump is from its target, and back-propagate through the distance. Score
distillation takes the gradient d'(y) at the difference y of two scores alone, without a graph of the networks.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.part import part

Metric = Callable[[Tensor, Tensor], Tensor]
"""(given (B, ...), wanted (B, ...)) -> distances (B,)."""
Slope = Callable[[Tensor], Tensor]
"""Gradient d'(y) of a distance d at a difference y (B, ...), summed over the numbers of a sample."""


@part
def squared_error(total: bool = False) -> Metric:
    """Mean of squares; `total`: their sum (MeanFlow and sCM count so: it changes constants that are added to it)."""

    def distance(given: Tensor, wanted: Tensor) -> Tensor:
        squares = (given - wanted).flatten(1).square()
        return squares.sum(1) if total else squares.mean(1)

    return distance


@part
def pseudo_huber(c: float = 0.0, elementwise: bool = False) -> Metric:
    """sqrt(|d|^2 + c^2) - c of the whole sample (arXiv 2310.14189, eq. 8); c 0: the distance itself (ECT).

    Args:
        c: the difference below which it is a square.
        elementwise: the mean of sqrt(d_i^2 + c^2) - c over the elements, as in the training scripts of LCM and PCM.
    """

    def distance(given: Tensor, wanted: Tensor) -> Tensor:
        squares = (given - wanted).flatten(1).square()
        if elementwise:
            return ((squares + c**2).sqrt() - c).mean(1)
        return (squares.sum(1) + max(c, 1e-8) ** 2).sqrt() - c

    return distance


@part
def feature_distance(of: Callable[[Tensor], Tensor], inner: Metric = squared_error()) -> Metric:
    """Distance of features: a perceptual metric such as LPIPS, on states or clean predictions.

    Args:
        of: (B, ...) -> features (B, ...), differentiable, of a frozen network.
        inner: the distance of the features.
    """

    def distance(given: Tensor, wanted: Tensor) -> Tensor:
        return inner(of(given), of(wanted))

    return distance


def squared(y: Tensor) -> Tensor:
    """Gradient of |y|^2 / 2."""
    return y


@part
def huber_gradient(c: float = 0.00054, elementwise: bool = False) -> Slope:
    """Gradient of sqrt(|y|^2 + c^2 n), the norm over the n numbers of a sample: SIM (arXiv 2410.16794).

    Args:
        c: per square root of the dimension.
        elementwise: that of the sum of sqrt(y_i^2 + c^2), as in the code of TDM; nearly a sign where c is small.
    """

    def gradient(y: Tensor) -> Tensor:
        if elementwise:
            return y / (y.square() + c**2).sqrt()
        square = y.square().flatten(1).sum(1) + c**2 * y[0].numel()
        return y / square.sqrt().reshape(-1, *[1] * (y.ndim - 1))

    return gradient


@part
def power_gradient(k: float = 2.0) -> Slope:
    """Gradient of |y|^(2k) / (2k): the higher powers of SIM."""

    def gradient(y: Tensor) -> Tensor:
        square = y.square().flatten(1).sum(1).reshape(-1, *[1] * (y.ndim - 1))
        return square ** (k - 1) * y

    return gradient
