"""Operators of scanners: part of the Fourier coefficients, line integrals, random sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.jacobian import LARGEST, vjp
from fewstep.tasks.restoration.operators import LinearOperator, Map, Shape, nonzero


def fourier_mask(mask: Tensor, shape: Sequence[int]) -> LinearOperator:
    """Part of the Fourier coefficients of a picture: magnetic resonance imaging with one coil.

    Args:
        mask: (H, W), 1 where a frequency is measured, in the order of `torch.fft.fft2` (lowest first).
        shape: of one sample: (1, H, W) real, or (2, H, W) real and imaginary part.

    Returns:
        An operator to (2, H, W), real and imaginary parts of unitary coefficients, zero where not measured.

    Raises:
        FewstepError: a mask of another size, or another number of channels.
    """
    shape = tuple(shape)
    if len(shape) != 3 or shape[0] not in (1, 2) or tuple(mask.shape) != shape[1:]:
        hint = "Give mask (H, W) and shape (1, H, W), or (2, H, W) for complex pictures."
        raise FewstepError("a Fourier mask does not fit", value=(tuple(mask.shape), shape), hint=hint)
    known, real = mask.double(), shape[0] == 1
    mirrored = known.flip(0, 1).roll((1, 1), (0, 1))  # the coefficient at -k of a real picture says the same
    gain = ((known + mirrored) / 2 if real else known).sqrt()

    def pair(z: Tensor) -> Tensor:
        return torch.stack([z.real, z.imag], 1)

    def joined(x: Tensor) -> Tensor:
        return torch.complex(x[:, 0], torch.zeros_like(x[:, 0]) if x.shape[1] == 1 else x[:, 1])

    def forward(x: Tensor) -> Tensor:
        return pair(torch.fft.fft2(joined(x), norm="ortho") * known.to(x))

    def back(z: Tensor) -> Tensor:
        return pair(torch.fft.ifft2(z, norm="ortho"))[:, : shape[0]]

    def filtered(h: Map, x: Tensor) -> Tensor:
        return back(torch.fft.fft2(joined(x), norm="ortho") * h(gain.to(x)))

    return LinearOperator("fourier", shape, (2, *shape[1:]), forward, lambda y: back(joined(y) * known.to(y)), filtered)


def radon(angles: Sequence[float] | Tensor, shape: Sequence[int]) -> LinearOperator:
    """Line integrals along parallel rays: tomography, in units of pixels.

    Rays through the picture turned by each angle; values between pixels are bilinear. The transpose is exact: it is
    that of this interpolation. The spectrum is not known (`written_out` finds it for small pictures).

    Args:
        angles: in degrees; less than 180 of them for a limited view.
        shape: of one sample (C, N, N), zero outside of the circle within.

    Returns:
        An operator to (C, len(angles), N).

    Raises:
        FewstepError: pictures that are not square, or no angle.
    """
    shape = tuple(shape)
    turns = torch.deg2rad(torch.as_tensor(angles, dtype=torch.float64))
    if len(shape) != 3 or shape[1] != shape[2] or not turns.numel():
        raise FewstepError("tomography needs square pictures and an angle", value=shape, hint="Pad the shorter side.")
    zero = torch.zeros_like(turns)
    rows = [turns.cos(), -turns.sin(), zero], [turns.sin(), turns.cos(), zero]
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = torch.nn.functional.affine_grid(affine, [len(turns), 1, *shape[1:]], align_corners=False)

    def forward(x: Tensor) -> Tensor:
        images = x.reshape(1, -1, *shape[1:]).expand(len(turns), -1, -1, -1)
        turned = torch.nn.functional.grid_sample(images, grid.to(x), align_corners=False)
        return turned.sum(2).reshape(len(turns), len(x), shape[0], shape[2]).permute(1, 2, 0, 3)

    def adjoint(y: Tensor) -> Tensor:
        return vjp(forward, y.new_zeros(len(y), *shape), y)[1]

    return LinearOperator("radon", shape, (shape[0], len(turns), shape[2]), forward, adjoint)


def compressed_sensing(count: int, shape: Sequence[int], seed: int = 0) -> LinearOperator:
    """`count` random sums of all pixels, with independent normal weights of variance 1 / count.

    Raises:
        FewstepError: no sum or more of them than pixels, or pictures too large to write the matrix out.
    """
    shape = tuple(shape)
    size = math.prod(shape)
    if not 1 <= count <= size:
        raise FewstepError("compressed sensing takes from 1 to all pixels", value=count, hint=f"There are {size}.")
    _refuse_large(size)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, size, generator=generator, dtype=torch.float64) / count**0.5
    return _dense("compressed sensing", matrix, shape, (count,))


def written_out(operator: LinearOperator) -> LinearOperator:
    """The same operator by its matrix, whose spectrum is computed: for small pictures.

    Raises:
        FewstepError: more pixels than a matrix is written out for.
    """
    size = math.prod(operator.input_shape)
    _refuse_large(size)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *operator.input_shape)
    matrix = operator.forward(basis).flatten(1).T
    known = _dense(operator.name, matrix, operator.input_shape, operator.output_shape)
    return replace(operator, filter=known.filter)


def _dense(name: str, matrix: Tensor, shape: Shape, output_shape: Shape) -> LinearOperator:
    _, values, axes = torch.linalg.svd(matrix, full_matrices=True)
    gains = nonzero(torch.cat([values, values.new_zeros(axes.shape[0] - len(values))]))

    def filtered(h: Map, x: Tensor) -> Tensor:
        v = axes.to(x)
        return ((x.flatten(1) @ v.T) * h(gains.to(x)) @ v).reshape(x.shape)

    return LinearOperator(
        name,
        shape,
        output_shape,
        lambda x: (x.flatten(1) @ matrix.to(x).T).reshape(-1, *output_shape),
        lambda y: (y.flatten(1) @ matrix.to(y)).reshape(-1, *shape),
        filtered,
    )


def _refuse_large(size: int) -> None:
    if size > LARGEST:
        raise FewstepError(f"a matrix of more than {LARGEST} pixels is not written out", value=size, hint="Use tiles.")
