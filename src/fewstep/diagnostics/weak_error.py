"""The error of a score that changes samples, without knowing the score: integration by parts against test functions.

For every test function psi the true score s of p_t has E[s . grad psi + laplacian psi] = 0 over p_t, and a field has it
for all psi exactly if its conservative part is the score (arXiv 2402.03845). Data at the right noise are all it needs.
Test functions are random Fourier features psi = cos(w . x + b).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.diagnostics.field import noise_field, noisy, normal, per_number
from fewstep.errors import FewstepError
from fewstep.metrics.intervals import Interval, centred_interval, mean_interval, resample_counts

GROUPS = 200
"""Samples are averaged in at most this many groups before they are resampled."""


@dataclass(frozen=True)
class WeakError:
    """Error of the conservative part of the noise prediction, per number; a lower bound of the naive error.

    error: without the bias of a finite sample, so around zero (and below it at times) for an exact network.
    floor: that bias: what the plain mean of squares would show for an exact network.
    """

    error: Interval
    floor: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def weak_error(
    denoiser: Denoiser, data: Tensor, t: float, *, features: int = 64, generator: torch.Generator | None = None
) -> WeakError:
    """Gauge-invariant error of a network at process time `t`, from data (B, ...) alone; thousands of samples pay.

    With u = w / |w|, per feature 2 E[(u . eps) sin(w . x + b) - sigma |w| cos(w . x + b)]^2, then the mean. Frequencies
    are log-uniform within a factor of two around one over the standard deviation of the states.

    Raises:
        FewstepError: fewer than ten samples, or no features.
    """
    if len(data) < 10 or features < 1:
        raise FewstepError("a weak error needs ten samples and one feature", value=(len(data), features))
    x = noisy(denoiser.process, data, t, generator)
    with torch.no_grad():
        noise = noise_field(denoiser, t)(x).flatten(1).double()
    x = x.flatten(1).double()
    direction = normal(x.new_empty(features, x.shape[1]), generator)
    direction = direction / direction.norm(dim=1, keepdim=True)
    octave = 2 * torch.rand(features, generator=generator, dtype=torch.float64) - 1
    size = 2 ** octave.to(x) / x.std(0).square().mean().sqrt()
    shift = (2 * math.pi * torch.rand(features, generator=generator, dtype=torch.float64)).to(x)
    angle = x @ (direction * size.unsqueeze(1)).T + shift
    terms = (noise @ direction.T) * angle.sin() - denoiser.process.sigma(t) * size * angle.cos()
    return _squared_means(terms.cpu())


def _squared_means(terms: Tensor) -> WeakError:
    """Twice the mean over features of the squared mean over samples of terms (B, features)."""
    count = len(terms)
    floor = float(2 * (terms.var(0) / count).mean())
    value = float(2 * terms.mean(0).square().mean())
    groups = torch.stack([group.mean(0) for group in terms.tensor_split(min(count, GROUPS))])
    counts = resample_counts(len(groups))
    draws = 2 * (counts @ groups / len(groups)).square().mean(1)
    return WeakError(centred_interval(value - floor, draws, len(groups)), floor)


def naive_error(
    denoiser: Denoiser, truth: Denoiser, data: Tensor, t: float, generator: torch.Generator | None = None
) -> Interval:
    """Mean squared difference of two networks' noise predictions per number, at process time `t`.

    What denoising losses see, gauge part included; the difference to `weak_error` may be harmless.
    """
    x = noisy(denoiser.process, data, t, generator)
    with torch.no_grad():
        return mean_interval(per_number(noise_field(denoiser, t)(x) - noise_field(truth, t)(x)).cpu())
