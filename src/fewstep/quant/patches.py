"""Inputs of a layer as rows of its matrix product: the patches that each output of a convolution sums over."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd


def dimensions(layer: nn.Module) -> int:
    """In how many dimensions a convolution walks; 0 for a Linear."""
    return len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs of one call as rows (samples, rows, in * kh * kw) of the layer's matrix product, float32."""
    x = x.detach().float()
    if not isinstance(layer, _ConvNd):
        return x.reshape(1 if x.ndim < 3 else x.shape[0], -1, x.shape[-1])
    size = dimensions(layer)
    x = x if x.ndim == size + 2 else x[None]
    if layer.transposed:
        x, stride = _spread(layer, x), [1] * size
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, stride = F.pad(x, list(layer._reversed_padding_repeated_twice), mode=mode), list(layer.stride)
    for axis, (kernel, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True), 2):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride[axis - 2])[..., ::dilation]
    if layer.transposed:
        x = x.flip(tuple(range(-size, 0)))
    return x.movedim(1, 1 + size).flatten(1 + size).flatten(1, size)


def _spread(layer: _ConvNd, x: Tensor) -> Tensor:
    """Inputs of a transposed convolution with zeros between and around them: it then slides over them in steps of 1."""
    size = dimensions(layer)
    sides = [(count - 1) * step + 1 for count, step in zip(x.shape[2:], layer.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sides)
    places: Any = (..., *(slice(None, None, step) for step in layer.stride))
    wide[places] = x
    border: list[int] = []
    for axis in reversed(range(size)):
        around = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - int(layer.padding[axis])
        border += [around, around + layer.output_padding[axis]]
    return F.pad(wide, border)


def moments_shape(layer: nn.Module) -> tuple[int, int]:
    """Groups of a convolution (1 for a Linear), and the width of a row within one."""
    if isinstance(layer, _ConvNd):
        return layer.groups, layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 1, layer.in_features if isinstance(layer, nn.Linear) else 0
