"""Symmetric integer quantization: weights per output channel or group, activations at run time.

A code q stands for the value `scale * q`. Rounding is to the nearest integer, ties to even.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.quant.grids import fit_grid
from fewstep.quant.scheme import Scheme


def quantize_weight(weight: Tensor, bits: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Codes int8 (rows, columns) and scales (rows, groups) of a weight matrix (rows, columns); see `grids.fit_grid`."""
    codes, grid = fit_grid(weight, Scheme(bits, 16, group_size))
    return codes, grid.scale


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


def quantize_activation(x: Tensor, dims: tuple[int, ...], top: int = 127) -> tuple[Tensor, Tensor]:
    """Codes -top..top (integers held in float, shape of x) and scales (x.shape with `dims` reduced to 1).

    One scale is shared over `dims`. The gradient of the codes with respect to x is the straight-through one (rounding
    counts as the identity, the scale as a constant; arXiv 1308.3432); the value is the same with and without it. NaN
    and infinity in x come out as NaN, so that they are noticed.
    """
    x, largest = _reach(x, dims)
    return _rounded(x * (top / largest)), largest.mul_(1.0 / top)


def quantize_input(
    x: Tensor, dims: tuple[int, ...], scheme: Scheme, scale: Tensor | None = None, zero: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes of the inputs of a layer (in float), and scales that broadcast with its output.

    scale, zero: the calibrated ones of static and affine inputs.
    """
    if scale is not None:
        return quantize_static(x, scale) if zero is None else quantize_affine(x, scale, zero), scale
    if scheme.activation_format == "fp8":
        return quantize_fp8(x, dims)
    return quantize_activation(x, dims, scheme.top)


def quantize_groups(x: Tensor, dims: tuple[int, ...], size: int, top: int) -> Tensor:
    """x rounded to `top` levels each side with a scale for every `size` features or channels, the last group shorter.

    dims: over which one scale would be shared without groups, from the end; the first of them is divided.
    """
    axis = x.ndim + dims[0]
    count = x.shape[axis]
    extra = -count % size
    wide = F.pad(x, [0, 0] * (-dims[0] - 1) + [0, extra]) if extra else x
    groups = wide.unflatten(axis, (-1, size))
    codes, scale = quantize_activation(groups, tuple(range(axis + 1, groups.ndim)), top)
    return (codes * scale).flatten(axis, axis + 1).narrow(axis, 0, count)


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """Codes -127..127 (in float, shape of x) on a calibrated scale; what lies outside is clipped, without gradient."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return _rounded((x / scale.to(x.dtype)).clamp(-127, 127))


def quantize_affine(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes 0..255 less the zero point (in float, shape of x) on a calibrated scale; what lies outside is clipped."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return _rounded((x / scale.to(x.dtype)).clamp(-zero, 255 - zero))


def quantize_fp8(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values of float8 e4m3 (held in float, shape of x) and scales shared over `dims`; gradient straight through."""
    x, largest = _reach(x, dims)
    values = x * (448.0 / largest)
    nearest = values.detach().to(torch.float8_e4m3fn).to(values.dtype)
    return values + (nearest - values).detach() if values.requires_grad else nearest, largest.mul_(1.0 / 448.0)


def _reach(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # the floor keeps the reciprocal finite: an all-zero token has codes 0
    return x, x.detach().abs().amax(dims, keepdim=True).clamp_(min=1e-30)


def _rounded(codes: Tensor) -> Tensor:
    """Nearest integers of fresh values; in place where no gradient is asked for."""
    # the sum is exact: the difference to the nearest integer is representable
    return codes + (codes.round() - codes).detach() if codes.requires_grad else codes.round_()
