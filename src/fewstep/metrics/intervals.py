"""Bootstrap intervals over prompts, the same resamples for all systems, and t intervals over seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A value, the interval around it, and the number of units (prompts, or seeds) that it rests on."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def resample_counts(n: int, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """How often each of n units is drawn: (resamples, n) float64, rows sum to n.

    One table serves all systems and metrics of an evaluation: that is what makes their differences paired.

    Raises:
        FewstepError: nothing to resample.
    """
    if n < 1 or resamples < 2:
        raise FewstepError(
            "a bootstrap needs units and at least two resamples",
            value=(n, resamples),
            hint="Give at least one prompt and about 1000 resamples.",
        )
    counts = np.random.Generator(np.random.PCG64(seed)).multinomial(n, np.full(n, 1 / n), size=resamples)
    return torch.from_numpy(counts.astype(np.float64))


def centred_interval(estimate: float, draws: Tensor, n: int, level: float = LEVEL) -> Interval:
    """Interval from the spread of bootstrap draws (B,) around their own mean, moved to the estimate.

    Centring removes the bias that resampling adds to distances (copies of a row look like less variety); the factor
    sqrt(n / (n - 1)) undoes the bootstrap's too small variance at small n.
    """
    spread = (draws - draws.mean()) * (n / (n - 1)) ** 0.5 if n > 1 else draws - draws.mean()
    low, high = torch.quantile(spread, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=spread.dtype))
    return Interval(estimate, estimate + float(low), estimate + float(high), n)


def mean_interval(values: Tensor, counts: Tensor | None = None, level: float = LEVEL) -> Interval:
    """Interval of the mean of values (n,) over their units; counts (B, n) from `resample_counts`."""
    values = values.double()
    counts = resample_counts(len(values)) if counts is None else counts
    return centred_interval(float(values.mean()), counts @ values / len(values), len(values), level)


def difference_interval(a: Tensor, b: Tensor, counts: Tensor | None = None, level: float = LEVEL) -> Interval:
    """Interval of mean(a) - mean(b) for values (n,) of the same units.

    Raises:
        FewstepError: the two are not of the same length.
    """
    if a.shape != b.shape:
        raise FewstepError(
            "a paired difference needs the same units on both sides",
            value=(tuple(a.shape), tuple(b.shape)),
            hint="Evaluate both systems on the same prompts.",
        )
    return mean_interval(a.double() - b.double(), counts, level)


def seed_interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Student's t interval of the mean over a few seeds (S,); a bootstrap of three values would be far too narrow.

    Raises:
        FewstepError: fewer than two seeds.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        raise FewstepError("an interval over seeds needs two seeds or more", value=n, hint="Run three seeds.")
    mean = float(values.double().mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.double().std() / n**0.5)
    return Interval(mean, mean - half, mean + half, n)
