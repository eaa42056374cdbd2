"""AdaRound (arXiv 2004.10568): learn for each weight whether it goes up or down, under the error of the outputs."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.quant.grids import QuantGrid, decode, fit_grid
from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method
from fewstep.quant.methods.low_rank import output_error
from fewstep.quant.scheme import Scheme, code_range

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid, eq. 23."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) in [0, 1] of eq. 23: reaches both ends at finite V, with no gradient beyond."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(rest: Tensor) -> Tensor:
    """V at which h(V) is the fraction `rest` that rounding down leaves over."""
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def limits(scheme: Scheme) -> tuple[int, int]:
    """Smallest and largest stored code of an integer scheme.

    Raises:
        FewstepError: the format is not uniform, so that up and down are not one code apart.
    """
    if scheme.weight_format == "asym":
        return -(2 ** (scheme.weight_bits - 1)), 2 ** (scheme.weight_bits - 1) - 1
    if scheme.weight_format != "int":
        raise FewstepError("adaround needs integer weights", value=str(scheme), hint="Use w4a8 or such, or gptq.")
    return code_range(scheme.weight_bits)


@torch.enable_grad()
def learn(
    weight: Tensor, scheme: Scheme, second: Tensor | None, *, steps: int = 300, rate: float = 0.02, pull: float = 0.1
) -> tuple[Tensor, QuantGrid]:
    """Codes and grid for weight (rows, columns) and second moments H (columns, columns) of its inputs.

    Minimises tr((W - W_q) H (W - W_q)^T), which is the mean squared error of the layer's outputs over the whole
    calibration set (eq. 21 without sampling), plus the pull of h(V) to 0 or 1 (eq. 24), annealed; a last sweep, not in
    the paper, turns single weights where that alone helps. Never worse than round to nearest under that error: the
    better of the two is kept.
    """
    low, high = limits(scheme)
    nearest, grid = fit_grid(weight, scheme)
    if second is None:
        return nearest, grid
    target, moments = weight.detach().float(), second.detach().float()
    spread = grid.columns(0, weight.shape[1], weight.shape[1], scheme)
    scale, zero = spread.scale.float(), 0 if spread.zero is None else spread.zero.float()
    levels = target / scale + zero
    floor = levels.floor()
    v = start((levels - floor).clamp(0, 1)).requires_grad_()
    unit = float((target @ moments * target).sum()) / target.numel() + 1e-30
    optimizer = torch.optim.Adam([v], lr=rate)
    for step in range(steps):
        share = step / steps
        soft = rectified_sigmoid(v)
        difference = ((floor + soft).clamp(low, high) - zero) * scale - target
        loss = (difference @ moments * difference).sum() / unit
        if share > 0.2:  # warm-up without the pull, then beta falls from 20 to 2 (the paper's schedule)
            beta = 2 + 9 * (1 + math.cos(math.pi * (share - 0.2) / 0.8))
            loss = loss + pull * (1 - (2 * soft - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        learned = (floor + (rectified_sigmoid(v) >= 0.5)).clamp_(low, high)
        ends = floor.clamp(low, high), (floor + 1).clamp(low, high)
        learned = flip(learned, ends, (learned - zero) * scale - target, scale, moments).to(torch.int8)
        won = [output_error(target - decode(c, grid, scheme), moments) for c in (learned, nearest)]
    return (learned if won[0] <= won[1] else nearest), grid


def flip(codes: Tensor, ends: tuple[Tensor, Tensor], difference: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """One sweep over columns that changes each weight to its other end where that alone lowers tr(D H D^T)."""
    scale, codes = scale.expand_as(codes), codes.clone()
    slope = difference @ moments
    for j in range(codes.shape[1]):
        other = ends[0][:, j] + ends[1][:, j] - codes[:, j]
        move = (other - codes[:, j]) * scale[:, j]
        gains = 2 * move * slope[:, j] + move**2 * moments[j, j] < 0
        codes[:, j] = torch.where(gains, other, codes[:, j])
        slope += torch.where(gains, move, torch.zeros_like(move))[:, None] * moments[j]
    return codes


@rounding_method(argument("a number of steps", 1, shown="300"), calibrated=True, uniform=True)
def adaround(steps: int = 300) -> RoundingMethod:
    """`adaround` or `adaround:STEPS` (default 300)."""
    return RoundingMethod(round=functools.partial(learn, steps=steps))
