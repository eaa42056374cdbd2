"""Rotations of a layer's inputs that spread outliers over all features (QuaRot, arXiv 2404.00456).

An orthogonal matrix R between input and weight changes nothing in full precision, W x = (W R^T)(R x); what it does to
rounding is that one large value of n becomes n values of its n-th root part. R = H D in blocks of the largest power of
two that divides the width: H the Walsh-Hadamard matrix over the root of its size, D signs. Nothing is stored.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def block(width: int) -> int:
    """How many of `width` features are mixed with one another: the largest power of two that divides it."""
    return width & -width


def rotate(x: Tensor, dim: int) -> Tensor:
    """R x along a dimension; computed in float32 at least, returned in the type of x."""
    size = block(x.shape[dim])
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _hadamard(wide * _signs(wide, dim, size), dim, size).to(x.dtype)


def rotate_back(x: Tensor, dim: int) -> Tensor:
    """R^T x along a dimension, which undoes `rotate`."""
    size = block(x.shape[dim])
    wide = _hadamard(x.to(torch.promote_types(x.dtype, torch.float32)), dim, size)
    return (wide * _signs(wide, dim, size)).to(x.dtype)


def _hadamard(x: Tensor, dim: int, size: int) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of every block, by sums and differences: the same numbers for any batch."""
    axis, half = dim % x.ndim, 1
    while half < size:
        first, second = x.unflatten(axis, (-1, 2, half)).unbind(axis + 1)
        x = torch.stack((first + second, first - second), axis + 1).flatten(axis, axis + 2)
        half *= 2
    return x * size**-0.5


def _signs(x: Tensor, dim: int, size: int) -> Tensor:
    """The signs of D, shaped to broadcast with x."""
    axis = dim % x.ndim
    return rudin_shapiro(size).to(x).repeat(x.shape[axis] // size).view(-1, *(1,) * (x.ndim - 1 - axis))


@lru_cache
def rudin_shapiro(size: int) -> Tensor:
    """Signs -1 and 1 (size,), by the parity of pairs of ones in the binary index.

    Their Walsh-Hadamard transform is flat (within a factor of the square root of 2), so that a constant input, as
    behind a ReLU, does not become one outlier.
    """
    index = torch.arange(size)
    pairs = index & (index >> 1)
    for shift in (32, 16, 8, 4, 2, 1):
        pairs = pairs ^ (pairs >> shift)
    return 1.0 - 2.0 * (pairs & 1)
