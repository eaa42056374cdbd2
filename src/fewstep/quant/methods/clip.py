"""Clipping: scales that cut the largest weights so that the others are finer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.quant.grids import QuantGrid, fit_grid
from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method
from fewstep.quant.scheme import Scheme

FRACTIONS = tuple(1 - 0.025 * i for i in range(31))


def least_squares_scale(weight: Tensor, scheme: Scheme, second: Tensor | None = None) -> tuple[Tensor, QuantGrid]:
    """Of 31 clipping points per group, the one of least squared error; columns weighted by their mean squared input."""
    return fit_grid(weight, scheme, FRACTIONS, None if second is None else second.diagonal().clamp(min=1e-12))


def at_percentile(
    weight: Tensor, scheme: Scheme, second: Tensor | None = None, *, percentile: float
) -> tuple[Tensor, QuantGrid]:
    """Clip each row (the tensor, if it has one scale) at a percentile of its magnitudes, groups at most there."""
    flat = weight.abs().reshape(1, -1) if scheme.per_tensor else weight.abs()
    rank = max(1, round(percentile / 100 * flat.shape[1]))
    limit = flat.kthvalue(rank, dim=1, keepdim=True).values
    limit = torch.where(limit > 0, limit, flat.amax(1, keepdim=True))
    codes, grid = fit_grid(torch.maximum(torch.minimum(weight, limit), -limit), scheme, (1.0,))
    return codes, grid


@rounding_method(argument("a percentile from 50 to 100", 50, 100, shown="99.9, or clip"))
def clip(percentile: float = 0.0) -> RoundingMethod:
    """`clip` (least squares) or `clip:PERCENTILE`, also for static input scales, such as clip:99.9."""
    if not percentile:
        return RoundingMethod(round=least_squares_scale)
    return RoundingMethod(round=functools.partial(at_percentile, percentile=percentile), percentile=percentile)
