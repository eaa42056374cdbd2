"""Int8 products on a CPU, through the oneDNN kernels that PyTorch carries.

They take the codes of a layer as they are: integers times integers, summed in 32 bits. Their result equals that of the
float product in `layer` bit for bit wherever that one is exact (partial sums below 2^24). The kernel wants unsigned
inputs, so codes q go in as q + 128 with zero point 128, affine ones with their own; this is exact too. On processors
without int8 dot products (VNNI, AMX) pairs of products may saturate at 16 bit; `available` tries, and the float product
serves there.

oneDNN reads weights in a layout of its own. Making it costs about as much as 300 rows of the product, so it is kept
beside the codes for 8-bit layers (one more byte per weight, see `keep`), and made per call for fewer bits, unless
the backend `int8` asks to keep it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

WORTH = 512
"""Rows (tokens or positions) from which making oneDNN's layout for one call pays."""
SMALL = 1 << 22
"""Multiply-adds of one call from which int8 pays.

A call of oneDNN's kernels costs 0.12 ms (Linear) to 0.17 ms (3x3 convolution) before it multiplies anything, against
0.05 ms of the float product of the same integers. Measured on one core of an AVX-512 VNNI processor (AMD EPYC, torch
2.13) with square layers of 16 to 1024 channels: the two are level at 4 million, and int8 beats a float32 layer from
9 to 17 million. Both give the same numbers wherever the float sum is exact.
"""
_ZERO = 128


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution walks over its input, with zeros around it."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def geometry(source: nn.Conv2d) -> ConvGeometry | None:
    """Geometry of a convolution, or None where oneDNN has no counterpart: padding that is not zeros, or uneven."""
    stride, dilation, kernel = (_pair(getattr(source, name)) for name in ("stride", "dilation", "kernel_size"))
    padding: Any = source.padding
    if source.padding_mode != "zeros":
        return None
    if padding == "same":
        total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        if any(size % 2 for size in total):
            return None
        padding = tuple(size // 2 for size in total)
    elif padding == "valid":
        padding = 0
    return ConvGeometry(stride, _pair(padding), dilation, source.groups)


class NativeProduct:
    """The int8 product of one layer: oneDNN's copy of its weight, made when needed and again when the codes change.

    Attributes:
        where: Geometry of a convolution, or None for a Linear.
        keep: Whether the copy stays after a call.
        weights: Number of weights: multiply-adds per row.
    """

    def __init__(self, where: ConvGeometry | None, keep: bool, weights: int) -> None:
        self.where, self.keep, self.weights, self.least = where, keep, weights, SMALL
        self._blocks: Tensor | None = None
        self._made_from: tuple[Any, int, int] = (None, 0, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeProduct:
        return NativeProduct(self.where, self.keep, self.weights)  # opaque tensors cannot be copied

    def __reduce__(self) -> tuple[Any, ...]:
        return NativeProduct, (self.where, self.keep, self.weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept copy."""
        return 0 if self._blocks is None else self._blocks.numel()

    def clear(self) -> None:
        """Drop the kept copy."""
        self._blocks = None

    def takes(self, x: Tensor) -> bool:
        """Whether this product serves an input: on a CPU, without a gradient, large enough, and worth the layout."""
        if not x.is_cpu or not x.numel() or x.requires_grad or x.dtype == torch.float64:
            return False
        if torch.compiler.is_compiling() or (self.where is not None and x.dim() != 4):
            return False
        rows = x.numel() // max(x.shape[-1] if self.where is None else x.shape[1], 1)
        if self.where is not None:
            rows //= self.where.stride[0] * self.where.stride[1]
        return (self.keep or rows >= WORTH) and rows * self.weights >= self.least and available()

    def __call__(
        self, x: Tensor, packed: Tensor, codes: Callable[[], Tensor], scale: Tensor, input_scale: Tensor | None,
        input_zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Product (float32, without bias) of x with codes int8 of the weight's shape and scale (out).

        Args:
            packed: The tensor behind the codes; the kept copy lives as long as this does not change.
            input_scale: The calibrated scale of static activations; None measures one per token or image.
            input_zero: The calibrated zero point of affine activations.
        """
        zero = None if input_zero is None else int(input_zero)
        blocks = self._weight(packed, codes, _ZERO if zero is None else zero)
        if self.where is None:
            y, steps = _linear(x, blocks, scale, input_scale, zero)
        else:
            y, steps = _convolution(x, blocks, scale, input_scale, self.where, zero)
        return y.mul_(steps)

    def _weight(self, packed: Tensor, codes: Callable[[], Tensor], zero: int) -> Tensor:
        version = 0 if packed.is_inference() else packed._version
        source, *made = self._made_from
        if self._blocks is not None and source is not None and source() is packed and made == [version, zero]:
            return self._blocks
        blocks = _blocks(codes(), self.where, zero)
        if self.keep:
            self._blocks, self._made_from = blocks, (weakref.ref(packed), version, zero)
        return blocks


def keep(model: nn.Module, on: bool = True) -> int:
    """Keep oneDNN's copy of every int8 weight of a model (fastest), or none (smallest); returns the bytes kept so far.

    By default 8-bit layers keep theirs after the first call and layers with fewer bits do not.
    """
    total = 0
    for module in model.modules():
        product = getattr(module, "native", None)
        if isinstance(product, NativeProduct):
            product.keep = on
            if not on:
                product.clear()
            total += product.nbytes
    return total


@lru_cache
def available() -> bool:
    """Whether oneDNN's int8 products are here and give the true integers at full range."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (32, 64), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (48, 64), generator=generator, dtype=torch.int8)
    left[0], right[0], right[1] = 127, 127, -127
    image, kernel = left.view(1, 64, 4, 8), right.view(48, 16, 2, 2)
    where = ConvGeometry((1, 1), (1, 1), (1, 1), 4)
    one = torch.ones(())
    try:
        product, _ = _linear(left.float(), _blocks(right, None), torch.ones(48), one)
        convolved, _ = _convolution(image.float(), _blocks(kernel, where), torch.ones(48), one, where)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = torch.nn.functional.conv2d(image.double(), kernel.double(), padding=1, groups=4)
    return torch.equal(product.long(), left.long() @ right.long().T) and torch.equal(convolved.double(), expected)


def _blocks(codes: Tensor, where: ConvGeometry | None, zero: int = _ZERO) -> Tensor:
    if where is None:
        return torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    scale = torch.ones(codes.shape[0])
    steps = (list(where.stride), list(where.padding), list(where.dilation), where.groups)
    return torch.ops.onednn.qconv_prepack(codes.contiguous(), scale, 1.0, zero, *steps, None)


def _linear(
    x: Tensor, blocks: Tensor, scale: Tensor, input_scale: Tensor | None, zero: int | None = None
) -> tuple[Tensor, Tensor]:
    codes, steps = _quantize(x, (-1,), input_scale, zero)
    zeros = torch.zeros(scale.numel(), dtype=torch.int64)
    y = torch.ops.onednn.qlinear_pointwise(
        codes.contiguous(),
        1.0,
        _ZERO if zero is None else zero,
        blocks,
        scale,
        zeros,
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return y, steps


def _convolution(
    x: Tensor, blocks: Tensor, scale: Tensor, input_scale: Tensor | None, where: ConvGeometry, zero: int | None = None
) -> tuple[Tensor, Tensor]:
    codes, steps = _quantize(x, (1, 2, 3), input_scale, zero)
    y = torch.ops.onednn.qconv_pointwise(
        _channels_last(codes), 1.0, _ZERO if zero is None else zero, blocks, scale,
        torch.zeros(scale.numel(), dtype=torch.int64), None,
        list(where.stride), list(where.padding), list(where.dilation), where.groups,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return (y.contiguous() if x.is_contiguous() else y), steps


def _quantize(
    x: Tensor, dims: tuple[int, ...], input_scale: Tensor | None, zero: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes + zero point as bytes, and the scales, as `quantize_activation`, `_static` and `_affine` define them.

    NaN and infinity have no code; they leave through the scale, which is then not finite either.
    """
    largest = torch.maximum(x.amax(dims, keepdim=True), x.amin(dims, keepdim=True).neg_()).float()
    if input_scale is None:
        largest = largest.clamp_(min=1e-30)
        codes, steps = (x * (127.0 / largest)).round_(), largest.mul_(1.0 / 127.0)
    else:
        low, high = (-127, 127) if zero is None else (-zero, 255 - zero)
        codes, steps = (x.float() / input_scale).round_().clamp_(low, high), input_scale + 0 * largest
        codes = codes if zero is None else codes.add_(zero - _ZERO)
    # twice as fast through int8 as straight to bytes
    return codes.to(torch.int8).view(torch.uint8).bitwise_xor_(_ZERO), steps


def _channels_last(codes: Tensor) -> Tensor:
    """Bytes (n, c, h, w) with channels innermost; image by image, because a flat transpose is the fast one."""
    if not codes.is_contiguous() or codes.is_contiguous(memory_format=torch.channels_last):
        return codes.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = codes.shape
    out = codes.new_empty(images, height * width, channels)
    for target, image in zip(out, codes.flatten(2), strict=True):
        target.copy_(image.t())
    return out.view(images, height, width, channels).permute(0, 3, 1, 2)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
