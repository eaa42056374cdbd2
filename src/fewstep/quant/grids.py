"""The values that low-bit weights can take: fitting a grid to a matrix, the nearest codes on it, and back.

A code stands for `scale * code` (int), `scale * (code - zero)` (asym), `scale * e4m3(code)` (fp8), `scale * NF4[code]`
or `scale * e2m1(code)` (mxfp4, nvfp4; see `fp4`). Codes are int8, so that they pack alike; NF4 indices are shifted by
8, asymmetric codes by half their range, e4m3 and e2m1 keep their bit pattern.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.quant import fp4
from fewstep.quant.scheme import BLOCKS, Scheme, code_range

# Fractions of the largest magnitude tried as the clipping point below 8 bit: clipping one outlier makes the step finer
# for all its neighbours. On normal weights in groups of 32: 0.3 dB more at 4 bit, 0.6 dB at 2 bit; on whole rows more.
CLIPS = (1.0, 0.92, 0.84, 0.7, 0.5)
# The 16 values of NF4: quantiles of a standard normal, scaled to [-1, 1], with an exact zero (arXiv 2305.14314, app. E)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_E4M3_MAX = 448.0
_CHUNK = 1 << 20  # weights quantized at once: temporaries stay in cache


@dataclass(frozen=True)
class QuantGrid:
    """Scales (rows, groups), one (1, 1) per tensor; zero points int8 of the same shape where the format has them.

    whole: of nvfp4, the scale of the tensor (0-dim), which is part of `scale` already.
    """

    scale: Tensor
    zero: Tensor | None = None
    whole: Tensor | None = None

    def columns(self, start: int, stop: int, total: int, scheme: Scheme) -> QuantGrid:
        """The grid spread to the columns start to stop of `total`: tensors that broadcast with (rows, stop - start)."""
        if scheme.group_size is None or self.scale.shape[1] == 1:
            return self
        which = torch.arange(start, min(stop, total), device=self.scale.device) // scheme.group_size
        return QuantGrid(self.scale[:, which], None if self.zero is None else self.zero[:, which], self.whole)

    def rounded(self, scheme: Scheme) -> QuantGrid:
        """The grid with its scales as they can be stored: of any positive ones, the nearest."""
        return QuantGrid(_storable(self.scale, scheme, self.whole), self.zero, self.whole)


@dataclass(frozen=True)
class StoredWeight:
    """All that a quantized layer keeps of its weight, flattened to (out, rest); what `scheme` does not name is None.

    codes: int8 (out, rest).  smooth: (in,), by which inputs are divided.  up, down: (out, rank) and (rank, rest).
    input_scale: 0-dim, the calibrated scale of the 8-bit inputs (after the division).  input_zero: int32 0-dim, the
    code from 0 to 255 that stands for 0, of affine inputs.
    """

    scheme: Scheme
    codes: Tensor
    grid: QuantGrid
    smooth: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None
    input_scale: Tensor | None = None
    input_zero: Tensor | None = None


def encode(weight: Tensor, grid: QuantGrid, scheme: Scheme) -> Tensor:
    """Nearest codes, int8 (rows, columns), of weights (rows, columns)."""
    spread = grid.columns(0, weight.shape[1], weight.shape[1], scheme)
    zero = None if spread.zero is None else spread.zero.float()
    return _encode(weight.float(), spread.scale.float(), zero, scheme, grid.whole)


def decode(codes: Tensor, grid: QuantGrid, scheme: Scheme, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (rows, columns) that codes stand for, computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    spread = grid.columns(0, codes.shape[1], codes.shape[1], scheme)
    zero = None if spread.zero is None else spread.zero.to(wide)
    return (_decode(codes, zero, scheme, wide) * spread.scale.to(wide)).to(dtype)


def snapped(levels: Tensor, scheme: Scheme) -> Tensor:
    """Weights over their scales, each moved to the nearest value of a format without zero points."""
    one = torch.ones((), device=levels.device)
    return _decode(_encode(levels, one, None, scheme), None, scheme, torch.float32)


def fit_grid(
    weight: Tensor, scheme: Scheme, clips: Sequence[float] | None = None, importance: Tensor | None = None
) -> tuple[Tensor, QuantGrid]:
    """Codes and grid of a weight matrix (rows, columns): of some candidate scales, the one of least squared error.

    Without groups the scale is float32, one per row (or tensor). With groups it is float16 (0.5 bit per weight at
    groups of 32) and codes are computed against the rounded scale, so that storage loses nothing more; mxfp4 and nvfp4
    take the scales of their definitions. Symmetric codes below 8 bit are not symmetric in range (-8..7 at 4 bit): the
    largest magnitude is put on 7, or on -8 (a negative scale where the positive side is longer).

    Args:
        clips: Fractions of the largest magnitude tried as the clipping point; by default `CLIPS` below 8 bit, 1 at 8.
        importance: Weights of the squared errors, (columns,): mean squares of the inputs.
    """
    if clips is None:
        clips = CLIPS if scheme.weight_bits < 8 and scheme.weight_format in ("int", "asym") else (1.0,)
    if scheme.per_tensor:
        flat = weight.reshape(1, -1)
        spread = None if importance is None else importance.expand(weight.shape[0], -1).reshape(-1)
        plain = dataclasses.replace(scheme, per_tensor=False)
        codes, grid = _fit_rows(flat.detach().float(), plain, clips, spread, None)
        return codes.view(weight.shape), grid
    whole = fp4.tensor_scale(weight) if scheme.weight_format == "nvfp4" else None
    rows, columns = weight.shape
    step = max(1, _CHUNK // max(columns, 1))
    chunks = (weight[i : i + step].detach().float() for i in range(0, rows, step))
    parts = [_fit_rows(chunk, scheme, clips, importance, whole) for chunk in chunks]
    return torch.cat([codes for codes, _ in parts]), joined([grid for _, grid in parts])


def joined(grids: Sequence[QuantGrid]) -> QuantGrid:
    """The grid of rows that were fitted apart."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return QuantGrid(torch.cat([grid.scale for grid in grids]), torch.cat(zeros) if zeros else None, grids[0].whole)


def _fit_rows(
    weight: Tensor, scheme: Scheme, clips: Sequence[float], importance: Tensor | None, whole: Tensor | None
) -> tuple[Tensor, QuantGrid]:
    rows, columns = weight.shape
    size = columns if scheme.group_size is None else scheme.group_size
    groups = math.ceil(columns / size)
    extra = groups * size - columns
    padded = torch.nn.functional.pad(weight, (0, extra)).view(rows, groups, size)
    if importance is not None:
        importance = torch.nn.functional.pad(importance.float(), (0, extra)).view(groups, size)
    best: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None
    for raw, low in _candidates(padded, scheme, clips):
        scale = raw if scheme.weight_format == "mxfp4" else _storable(raw, scheme, whole)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # all zero, or too small for float16
        zero = None if low is None else _zero_point(low, scale.float(), scheme.weight_bits)
        codes = _encode(padded, scale.float(), zero, scheme, whole)
        error = _decode(codes, zero, scheme, torch.float32).mul_(scale.float()).sub_(padded).square_()
        total = (error if importance is None else error * importance).sum(-1, keepdim=True)
        if best is None:
            best = total, scale, codes, zero
            continue
        better = total < best[0]
        new = (total, scale, codes, zero)
        best = tuple(  # type: ignore[assignment]
            None if b is None or a is None else torch.where(better, b, a) for a, b in zip(best, new, strict=True)
        )
    if best is None:
        raise ValueError("no candidate scale")
    _, scale, codes, zero = best
    grid = QuantGrid(scale.squeeze(-1), None if zero is None else zero.squeeze(-1).to(torch.int8), whole)
    return codes.view(rows, -1)[:, :columns].contiguous(), grid


def _candidates(groups: Tensor, scheme: Scheme, clips: Sequence[float]) -> list[tuple[Tensor, Tensor | None]]:
    """Scales (rows, groups, 1) worth trying, plain ones first; for asymmetric codes with the smallest value."""
    smallest, largest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    reach = torch.maximum(largest, -smallest)
    if scheme.weight_format == "mxfp4":
        return [(fp4.power_of_two(reach * clip), None) for clip in clips]
    if scheme.weight_format == "nvfp4":
        return [(reach * clip / fp4.TOP, None) for clip in clips]
    if scheme.weight_format in ("fp8", "nf4"):
        top = _E4M3_MAX if scheme.weight_format == "fp8" else 1.0
        return [(reach * (clip / top), None) for clip in clips]
    if scheme.weight_format == "asym":
        low, high = smallest.clamp(max=0), largest.clamp(min=0)
        levels = 2**scheme.weight_bits - 1
        return [((high - low) * (clip / levels), low * clip) for clip in clips]
    bottom, top = code_range(scheme.weight_bits)
    plain = reach / top
    if scheme.weight_bits == 8:
        return [(plain * clip, None) for clip in clips]
    signed = torch.where(largest > -smallest, -reach, reach) / -bottom
    return [(scale * clip, None) for clip in clips for scale in (plain, signed)]


def _zero_point(low: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The (shifted) code that stands for 0, as a float."""
    half = 2 ** (bits - 1)
    return (-low / scale).round_().clamp_(0, 2 * half - 1) - half


def _storable(scale: Tensor, scheme: Scheme, whole: Tensor | None) -> Tensor:
    """float16 where groups share scales, float32 else; what the bytes of mxfp4 and nvfp4 can hold, as float32."""
    if whole is not None:
        return whole * fp4.block_scale(scale, whole)
    if scheme.weight_format == "mxfp4":
        return fp4.nearest_power(scale)
    return scale.float() if scheme.group_size is None else scale.clamp(-65504, 65504).half()


def _encode(weight: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme, whole: Tensor | None = None) -> Tensor:
    if whole is not None:  # in the order of operations that public kernels use: ties fall to the same side
        return fp4.encode_fp4(weight * ((1 / whole) / fp4.block_scale(scale, whole)))
    levels = weight / scale
    if scheme.weight_format in BLOCKS:
        return fp4.encode_fp4(levels)
    if scheme.weight_format == "fp8":
        return levels.clamp_(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn).view(torch.int8)
    if scheme.weight_format == "nf4":
        table = torch.tensor(NF4, device=weight.device)
        return torch.bucketize(levels, (table[1:] + table[:-1]) / 2).sub_(8).to(torch.int8)
    if zero is not None:
        half = 2 ** (scheme.weight_bits - 1)
        return levels.round_().add_(zero).clamp_(-half, half - 1).to(torch.int8)
    return levels.round_().clamp_(*code_range(scheme.weight_bits)).to(torch.int8)


def _decode(codes: Tensor, zero: Tensor | None, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """Values before the scale, freshly allocated."""
    if scheme.weight_format == "fp8":
        return codes.contiguous().view(torch.float8_e4m3fn).to(dtype)
    if scheme.weight_format in BLOCKS:
        return fp4.decode_fp4(codes, dtype)
    if scheme.weight_format == "nf4":
        return torch.tensor(NF4, dtype=dtype, device=codes.device)[codes.long() + 8]
    values = codes.to(dtype, copy=True)
    return values if zero is None else values.sub_(zero)
