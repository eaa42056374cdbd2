"""Symmetric integer quantization: weights per output channel or group, activations at run time.

A code q stands for the value `scale * q`. Rounding is to the nearest integer, ties to even.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.quant.scheme import code_range

# Fractions of the largest magnitude tried as the clipping point below 8 bit: clipping one outlier makes the step finer
# for all its neighbours. On normal weights in groups of 32: 0.3 dB more at 4 bit, 0.6 dB at 2 bit; on whole rows more.
CLIPS = (1.0, 0.92, 0.84, 0.7, 0.5)
_CHUNK = 1 << 20  # weights quantized at once: temporaries stay in cache


def quantize_weight(weight: Tensor, bits: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Codes int8 (rows, columns) and scales (rows, groups) of a weight matrix (rows, columns).

    Without groups the scale is float32, one per row. With groups it is float16 (0.5 bit per weight at groups of 32)
    and codes are computed against the rounded scale, so that storage loses nothing more. Below 8 bit the code
    range is not symmetric (-8..7 at 4 bit); each group takes, of some candidate scales, the one of least squared error:
    the largest magnitude on 7, or on -8 (a negative scale where the positive side is longer), also clipped a little.
    """
    rows, columns = weight.shape
    step = max(1, _CHUNK // max(columns, 1))
    parts = [_quantize_rows(weight[i : i + step].detach().float(), bits, group_size) for i in range(0, rows, step)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts])


def dequantize_weight(codes: Tensor, scale: Tensor, group_size: int | None, dtype: torch.dtype) -> Tensor:
    """The matrix (rows, columns) that codes and scales stand for, computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return apply_scale_(codes.to(wide), scale, group_size).to(dtype)


def apply_scale_(values: Tensor, scale: Tensor, group_size: int | None) -> Tensor:
    """Multiply a float matrix (rows, columns) in place by its scales (rows, groups)."""
    scale = scale.to(values.dtype)
    columns = values.shape[1]
    if group_size is None or scale.shape[1] == 1:
        return values.mul_(scale)
    if columns % group_size:  # the last group is shorter
        return values.mul_(scale.repeat_interleave(group_size, 1)[:, :columns])
    values.view(values.shape[0], -1, group_size).mul_(scale[:, :, None])
    return values


def quantize_activation(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes -127..127 (integers held in float, shape of x) and scales (x.shape with `dims` reduced to 1).

    One scale is shared over `dims`. The gradient of the codes with respect to x is the straight-through one (rounding
    counts as the identity, the scale as a constant; arXiv 1308.3432); the value is the same with and without it. NaN
    and infinity in x come out as NaN, so that they are noticed.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # the floor keeps the reciprocal finite: an all-zero token has codes 0
    largest = x.detach().abs().amax(dims, keepdim=True).clamp_(min=1e-30)
    codes = x * (127.0 / largest)
    # the sum is exact: the difference to the nearest integer is representable
    codes = codes + (codes.round() - codes).detach() if codes.requires_grad else codes.round_()
    return codes, largest.mul_(1.0 / 127.0)


def _quantize_rows(weight: Tensor, bits: int, group_size: int | None) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    low, high = code_range(bits)
    size = columns if group_size is None else group_size
    groups = math.ceil(columns / size)
    padded = torch.nn.functional.pad(weight, (0, groups * size - columns)).view(rows, groups, size)
    precision = torch.float32 if group_size is None else torch.float16
    first, *others = (scale.clamp(-65504, 65504).to(precision) for scale in _candidate_scales(padded, bits))
    error, chosen, codes = _try_scale(padded, first, low, high)
    for scale in others:
        new_error, new_scale, new_codes = _try_scale(padded, scale, low, high)
        better = new_error < error
        error = torch.where(better, new_error, error)
        chosen = torch.where(better, new_scale, chosen)
        codes = torch.where(better, new_codes, codes)
    return codes.to(torch.int8).view(rows, -1)[:, :columns].contiguous(), chosen.squeeze(-1)


def _try_scale(groups: Tensor, scale: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared error, scale and codes (float) of quantizing groups (rows, groups, size) with one scale per group."""
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # all zero, or too small for float16
    codes = (groups / scale.float()).round_().clamp_(low, high)
    return (codes * scale.float() - groups).square_().sum(-1, keepdim=True), scale, codes


def _candidate_scales(groups: Tensor, bits: int) -> list[Tensor]:
    """Scales (rows, groups, 1) worth trying, the plain largest / top first."""
    low, high = code_range(bits)
    smallest, largest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    reach = torch.maximum(largest, -smallest)
    plain = reach / high
    if bits == 8:
        return [plain]
    signed = torch.where(largest > -smallest, -reach, reach) / -low
    return [scale * clip for clip in CLIPS for scale in (plain, signed)]
