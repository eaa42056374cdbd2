"""Is the field a gradient? The antisymmetric part of its Jacobian, and its divergence, from products alone.

A score is a gradient, so its Jacobian J is symmetric. A network's need not be; what that means for samples and for
geometry is the subject of arXiv 2402.03845. A gauge field (div(p_t r) = 0) is not symmetric and changes no
distribution, so a gap is no proof of an error: `weak_error` is the measure that only errors move.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.diagnostics.field import noise_field, noisy
from fewstep.errors import FewstepError
from fewstep.jacobian import jvp, signs, vjp
from fewstep.metrics.intervals import Interval, centred_interval, mean_interval, resample_counts


@dataclass(frozen=True)
class Conservativity:
    """What the Jacobian of the noise prediction says at one time; intervals over the samples.

    gap: E ||J v - J^T v||^2 / (2 E ||J v||^2): 0 symmetric, 1 no relation of J to its transpose, 2 antisymmetric.
    shuffled: the same for the field with its output numbers permuted at random: what "no structure" looks like.
    noise_share: sigma div(eps) / D, the part of all directions that the network takes for noise (1: all).
    """

    time: float
    rho: float
    """sigma / alpha."""
    gap: Interval
    shuffled: Interval
    noise_share: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def conservativity(
    denoiser: Denoiser,
    data: Tensor,
    t: float,
    *,
    probes: int = 4,
    generator: torch.Generator | None = None,
    method: str = "auto",
) -> Conservativity:
    """Gap, its shuffled baseline and divergence at process time `t`, on noisy states of the data (B, ...).

    One forward and two reverse products per probe. A guided network is neither a gradient nor a score: give the
    conditional one where that is the question.

    Raises:
        FewstepError: fewer than two samples or one probe, or a network without gradients.
    """
    if len(data) < 2 or probes < 1:
        raise FewstepError("an interval needs two samples and one probe", value=(len(data), probes))
    field, x = noise_field(denoiser, t), noisy(denoiser.process, data, t, generator)
    order = _cycle(x[0].numel(), generator)
    back = order.argsort()
    sums = torch.zeros(4, len(x), dtype=torch.float64)
    for _ in range(probes):
        v = signs(x, generator)
        forward = jvp(field, x, v, method=method)[1].detach()
        reverse = vjp(field, x, v)[1]
        crossed = vjp(field, x, _permuted(v, back))[1]  # (P J)^T v = J^T P^T v
        parts = (forward - reverse, forward, _permuted(forward, order) - crossed)
        sums[:3] += torch.stack([_squares(part) for part in parts])
        sums[3] += (v * forward).double().flatten(1).sum(1).cpu()
    counts = resample_counts(len(x))
    alpha, sigma = denoiser.process.alpha(t), denoiser.process.sigma(t)
    return Conservativity(
        time=t,
        rho=sigma / alpha if alpha else float("inf"),
        gap=_ratio(sums[0], 2 * sums[1], counts),
        shuffled=_ratio(sums[2], 2 * sums[1], counts),
        noise_share=mean_interval(sigma * sums[3] / probes / x[0].numel(), counts),
    )


def _cycle(size: int, generator: torch.Generator | None) -> Tensor:
    """A random permutation that leaves nothing in its place."""
    order = torch.randperm(size, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _permuted(x: Tensor, order: Tensor) -> Tensor:
    return x.flatten(1)[:, order.to(x.device)].reshape(x.shape)


def _squares(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1).cpu()


def _ratio(above: Tensor, below: Tensor, counts: Tensor) -> Interval:
    """A ratio of sums over samples, with its bootstrap interval; a constant field has no gap."""
    floor = torch.finfo(torch.float64).tiny
    draws = (counts @ above) / (counts @ below).clamp(min=floor)
    return centred_interval(float(above.sum() / below.sum().clamp(min=floor)), draws, len(above))
