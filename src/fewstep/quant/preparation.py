"""What a low-bit layer does to its inputs before they are rounded, and what that makes of its weight.

Inputs are divided by `smooth` (SmoothQuant) and then rotated (`rotation`), weights the other way round, so that the
product in full precision stays what it was.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.quant.rotation import rotate, rotate_back


def prepare_inputs(layer: Any, x: Tensor, smooth: Tensor | None) -> Tensor:
    """Inputs of a `QuantLayer` as they are rounded; smooth: (in,), None for none."""
    if smooth is not None:
        x = x / layer._per_input(smooth).to(x.dtype)
    return rotate(x, layer._dims[0]) if layer.scheme.hadamard else x


def restore_inputs(layer: Any, x: Tensor, smooth: Tensor | None) -> Tensor:
    """The inverse of `prepare_inputs`."""
    x = rotate_back(x, layer._dims[0]) if layer.scheme.hadamard else x
    return x if smooth is None else x * layer._per_input(smooth).to(x.dtype)


def prepare_weight(layer: Any, weight: Tensor) -> Tensor:
    """The weight (out, in / groups, ...) for prepared inputs."""
    if layer.smooth is not None:
        weight = weight * layer._per_input(layer.smooth).to(weight.dtype)
    return rotate(weight, 1) if layer.scheme.hadamard else weight


def restore_weight(layer: Any, weight: Tensor) -> Tensor:
    """The inverse of `prepare_weight`: the weight for inputs as they come."""
    weight = rotate_back(weight, 1) if layer.scheme.hadamard else weight
    return weight if layer.smooth is None else weight / layer._per_input(layer.smooth).to(weight.dtype)
