"""Distances per sample between what the student gave and what it should have given: (B, ...), (B, ...) -> (B,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]


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
    """sqrt(|d|^2 + c^2) - c of the whole sample (arXiv 2310.14189, eq. 8); c 0: the distance itself (ECT)."""

    c: float = 0.0

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        squares = (given - wanted).flatten(1).square().sum(1)
        return (squares + max(self.c, 1e-8) ** 2).sqrt() - self.c


@dataclass(frozen=True)
class ElementwiseHuber:
    """Mean of sqrt(d^2 + c^2) - c over the elements, as in the training scripts of LCM and PCM."""

    c: float = 1e-3

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        return (((given - wanted).flatten(1).square() + self.c**2).sqrt() - self.c).mean(1)


@dataclass(frozen=True)
class FeatureDistance:
    """Distance of features: a perceptual metric such as LPIPS, on states or clean predictions.

    of:
        (B, ...) -> features (B, ...), differentiable, of a frozen network.
    """

    of: Callable[[Tensor], Tensor]
    inner: Metric = field(default_factory=SquaredError)

    def __call__(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Distances (B,)."""
        return self.inner(self.of(given), self.of(wanted))
