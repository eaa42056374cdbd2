"""Int8 convolution on CUDA as an implicit matrix product, in Triton.

The rows of the product are output positions, its inner dimension runs over kernel positions and input channels; the
matrix of input patches is never written. A 1x1 convolution is the plain matrix product of the same kernel. Sums are
exact in 32 bits; scales and bias are applied before the result is stored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewstep.quant.native import ConvGeometry

ROWS, COLUMNS, INNER = 64, 64, 64


def convolve(
    codes: Tensor, weight: Tensor, input_scale: Tensor, scale: Tensor, bias: Tensor | None, where: ConvGeometry,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Convolution (n, out, h', w') of codes int8 (n, c, h, w) with weight codes int8 (out, c, kh, kw), without groups.

    Args:
        input_scale: float32 (n,), one per image.
        scale: float32 (out,), one per output channel.

    The result lies in memory with channels innermost, as the kernel writes it.
    """
    images, channels, height, width = codes.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    (stride_h, stride_w), (pad_h, pad_w), (step_h, step_w) = where.stride, where.padding, where.dilation
    out_h = (height + 2 * pad_h - step_h * (kernel_h - 1) - 1) // stride_h + 1
    out_w = (width + 2 * pad_w - step_w * (kernel_w - 1) - 1) // stride_w + 1
    x = codes.contiguous(memory_format=torch.channels_last)
    w = weight.permute(0, 2, 3, 1).contiguous()
    y = torch.empty(images, out_h, out_w, outputs, dtype=dtype, device=codes.device)
    rows = images * out_h * out_w
    if rows:
        _kernel[(triton.cdiv(rows, ROWS), triton.cdiv(outputs, COLUMNS))](
            x, w, y, input_scale, scale, scale if bias is None else bias,
            rows, channels, height, width, outputs, out_h, out_w,
            stride_h, stride_w, pad_h, pad_w, step_h, step_w,
            KERNEL_H=kernel_h, KERNEL_W=kernel_w, BIAS=bias is not None, M=ROWS, N=COLUMNS, K=INNER,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


@triton.jit
def _kernel(
    x: Any, w: Any, y: Any, input_scale: Any, scale: Any, bias: Any,
    rows: Any, channels: Any, height: Any, width: Any, outputs: Any, out_h: Any, out_w: Any,
    stride_h: Any, stride_w: Any, pad_h: Any, pad_w: Any, step_h: Any, step_w: Any,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, BIAS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    image = row // (out_h * out_w)
    place = row % (out_h * out_w)
    top = place // out_w * stride_h - pad_h
    left = place % out_w * stride_w - pad_w
    total = tl.zeros((M, N), dtype=tl.int32)
    for i in range(KERNEL_H):
        for j in range(KERNEL_W):
            down, right = top + i * step_h, left + j * step_w
            inside = (row < rows) & (down >= 0) & (down < height) & (right >= 0) & (right < width)
            patch = ((image * height + down) * width + right) * channels
            kernel = (column * KERNEL_H * KERNEL_W + i * KERNEL_W + j) * channels
            for start in range(0, channels, K):
                channel = start + inner
                known = channel < channels
                a = tl.load(x + patch[:, None] + channel[None, :], mask=inside[:, None] & known[None, :], other=0)
                b = tl.load(
                    w + kernel[None, :] + channel[:, None], mask=(column < outputs)[None, :] & known[:, None], other=0
                )
                total += tl.dot(a, b, out_dtype=tl.int32)
    result = total.to(tl.float32) * tl.load(scale + column, mask=column < outputs, other=0.0)[None, :]
    result = result * tl.load(input_scale + image, mask=row < rows, other=0.0)[:, None]
    if BIAS:
        result += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    target = y + row[:, None] * outputs + column[None, :]
    tl.store(target, result.to(y.dtype.element_ty), mask=(row < rows)[:, None] & (column < outputs)[None, :])
