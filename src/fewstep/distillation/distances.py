"""Distances per sample, and their gradients: (B, ...), (B, ...) -> (B,).

Flow maps measure how far the student's jump is from its target, and back-propagate through the distance. Score
distillation takes the gradient d'(y) at the difference y of two scores alone, without a graph of the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]
Slope = Callable[[Tensor], Tensor]
"""Gradient d'(y) of a distance d at a difference y (B, ...), summed over the numbers of a sample."""


@dataclass(frozen=True)
class SquaredError:
    """Mean of squares; `total`: their sum (MeanFlow and sCM count so: it changes constants that are added to it)."""

    total: bool = False

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        squares = (given - wanted).flatten(1).square()
        return squares.sum(1) if self.total else squares.mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|d|^2 + c^2) - c of the whole sample (arXiv 2310.14189, eq. 8); c 0: the distance itself (ECT).

    Attributes:
        c: the difference below which it is a square.
        elementwise: the mean of sqrt(d_i^2 + c^2) - c over the elements, as in the training scripts of LCM and PCM.
    """

    c: float = 0.0
    elementwise: bool = False

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        squares = (given - wanted).flatten(1).square()
        if self.elementwise:
            return ((squares + self.c**2).sqrt() - self.c).mean(1)
        return (squares.sum(1) + max(self.c, 1e-8) ** 2).sqrt() - self.c


@dataclass(frozen=True)
class FeatureDistance:
    """Distance of features: a perceptual metric such as LPIPS, on states or clean predictions.

    Attributes:
        of: (B, ...) -> features (B, ...), differentiable, of a frozen network.
        inner: the distance of the features.
    """

    of: Callable[[Tensor], Tensor]
    inner: Metric = field(default_factory=SquaredError)

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        return self.inner(self.of(given), self.of(wanted))


def squared(y: Tensor) -> Tensor:
    """Gradient of |y|^2 / 2."""
    return y


@dataclass(frozen=True)
class HuberGradient:
    """Gradient of sqrt(|y|^2 + c^2 n), the norm over the n numbers of a sample: SIM (arXiv 2410.16794).

    Attributes:
        c: per square root of the dimension.
        elementwise: that of the sum of sqrt(y_i^2 + c^2), as in the code of TDM; nearly a sign where c is small.
    """

    c: float = 0.00054
    elementwise: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """d'(y)."""
        if self.elementwise:
            return y / (y.square() + self.c**2).sqrt()
        square = y.square().flatten(1).sum(1) + self.c**2 * y[0].numel()
        return y / square.sqrt().reshape(-1, *[1] * (y.ndim - 1))


@dataclass(frozen=True)
class PowerGradient:
    """Gradient of |y|^(2k) / (2k): the higher powers of SIM."""

    k: float = 2.0

    def __call__(self, y: Tensor) -> Tensor:
        """d'(y)."""
        square = y.square().flatten(1).sum(1).reshape(-1, *[1] * (y.ndim - 1))
        return square ** (self.k - 1) * y
