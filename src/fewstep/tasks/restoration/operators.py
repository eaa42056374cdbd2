"""Linear operators: what was done to a picture, with the transpose and the spectrum that undo what can be undone.

An operator A maps pictures (B, *input_shape) to measurements (B, *output_shape). With its singular value decomposition
A = U S V^T, everything that a method asks for is `filter`, which multiplies the coordinates V^T x by a function of
the singular values:

    A^T A = V S^2 V^T,     A^+ = V S^-2 V^T A^T,     A^T (r A A^T + v)^-1 = V (r S^2 + v)^-1 V^T A^T
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError

Map = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601, which Pillow uses."""
NULL = 1e-6
"""Singular values below this part of the largest count as zero."""


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A linear map of pictures; functions below make the usual ones.

    Attributes:
        name: for people.
        input_shape, output_shape: of one sample.
        forward: A, (B, *input_shape) -> (B, *output_shape).
        adjoint: A^T, the way back.
        filter: (h, x) -> V h(S) V^T x for pictures x and a function h of singular values (of any shape); None where
            the spectrum is not known (see `written_out`).
    """

    name: str
    input_shape: Shape
    output_shape: Shape
    forward: Map
    adjoint: Map
    filter: Callable[[Map, Tensor], Tensor] | None = None

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y: of all pictures (B, *input_shape) whose measurement is nearest to y the smallest.

        Raises:
            FewstepError: the spectrum is not known.
        """
        return self.spectral(lambda s: s.square().reciprocal().where(s > 0, 0.0), self.adjoint(y))

    def spectral(self, h: Map, x: Tensor) -> Tensor:
        """V h(S) V^T x.

        Raises:
            FewstepError: the spectrum is not known.
        """
        if self.filter is None:
            hint = "Use written_out(operator) where pictures are small, or pigdm or dps, which do without."
            raise FewstepError(f"the spectrum of {self.name} is not known", value=self.input_shape, hint=hint)
        return self.filter(h, x)


def denoise(shape: Sequence[int]) -> LinearOperator:
    """The identity: nothing but noise was added."""
    return inpainting(torch.ones(*shape), shape, name="denoise")


def inpainting(mask: Tensor, shape: Sequence[int], *, name: str = "inpainting") -> LinearOperator:
    """Known pixels, zero elsewhere.

    Args:
        mask: 1 where a pixel is known and 0 where it is not; broadcasts against `shape`.
        shape: of one sample (C, H, W).
        name: for people.

    Raises:
        FewstepError: a mask of another size, or with other values.
    """
    shape = tuple(shape)
    try:
        known = torch.broadcast_to(mask.double(), shape)
    except RuntimeError:
        hint = "Give one value per pixel, (H, W) or (C, H, W)."
        raise FewstepError(f"the mask does not fit pictures of {shape}", value=tuple(mask.shape), hint=hint) from None
    if not bool(((known == 0) | (known == 1)).all()):
        raise FewstepError("a mask holds 1 for known pixels and 0 for others", hint="Compare with a threshold.")
    keep = lambda x: x * known.to(x)  # noqa: E731
    return LinearOperator(name, shape, shape, keep, keep, lambda h, x: h(known.to(x)) * x)


def grey(shape: Sequence[int]) -> LinearOperator:
    """Luma of colour pictures (3, H, W), as (1, H, W).

    Raises:
        FewstepError: not three channels.
    """
    shape = tuple(shape)
    if len(shape) != 3 or shape[0] != 3:
        raise FewstepError(
            "grey needs pictures of three channels", value=shape, hint="Leave grey pictures as they are."
        )
    mix = torch.tensor(GREY, dtype=torch.float64).reshape(3, 1, 1)
    size = float(mix.square().sum().sqrt())

    def luma(x: Tensor) -> Tensor:
        return (x * mix.to(x)).sum(1, keepdim=True)

    def filtered(h: Map, x: Tensor) -> Tensor:
        along = luma(x) * mix.to(x) / size**2
        gain = h(torch.tensor([size, 0.0], dtype=torch.float64).to(x))
        return gain[0] * along + gain[1] * (x - along)

    return LinearOperator("grey", shape, (1, *shape[1:]), luma, lambda y: y * mix.to(y), filtered)


def box_downsampling(factor: int, shape: Sequence[int]) -> LinearOperator:
    """Means of squares of `factor` by `factor` pixels.

    Raises:
        FewstepError: a factor that does not divide the sides of `shape` (C, H, W).
    """
    rows, columns = (
        torch.eye(n, dtype=torch.float64).repeat_interleave(factor, 1) / factor for n in _divided(factor, shape)
    )
    return _separable(f"box:{factor}", rows, columns, shape)


def bicubic_downsampling(factor: int, shape: Sequence[int]) -> LinearOperator:
    """The bicubic reduction with antialiasing of Pillow and of `torch.nn.functional.interpolate`.

    Raises:
        FewstepError: a factor that does not divide the sides of `shape` (C, H, W).
    """

    def matrix(small: int) -> Tensor:
        large = small * factor
        identity = torch.eye(large, dtype=torch.float64)[None, None]
        resized = torch.nn.functional.interpolate(identity, (small, large), mode="bicubic", antialias=True)
        return resized[0, 0]

    rows, columns = map(matrix, _divided(factor, shape))
    return _separable(f"bicubic:{factor}", rows, columns, shape)


def blur(width: float | Tensor, shape: Sequence[int]) -> LinearOperator:
    """Convolution with a kernel, periodic at the borders.

    Args:
        width: standard deviation in pixels of a Gaussian, or a kernel (h, w) of odd sides.
        shape: of one sample (C, H, W).

    Raises:
        FewstepError: a width that is not positive, a kernel of even sides, or one larger than the picture.
    """
    shape = tuple(shape)
    kernel = width.double() if isinstance(width, Tensor) else _gaussian(width)
    h, w = kernel.shape
    if h % 2 == 0 or w % 2 == 0 or h > shape[-2] or w > shape[-1]:
        hint = f"Its sides must be odd and at most those of the picture, {shape[-2:]}."
        raise FewstepError("a kernel does not fit", value=(h, w), hint=hint)
    padded = torch.zeros(shape[-2:], dtype=torch.float64)
    padded[:h, :w] = kernel
    response = torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), (0, 1)))

    def multiplied(x: Tensor, by: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * by.to(x.device)).real.to(x)

    return LinearOperator(
        "blur",
        shape,
        shape,
        lambda x: multiplied(x, response),
        lambda y: multiplied(y, response.conj()),
        lambda h, x: multiplied(x, h(nonzero(response.abs()))),
    )


def _separable(name: str, rows: Tensor, columns: Tensor, shape: Sequence[int]) -> LinearOperator:
    """R x C^T for matrices R (h, H) and C (w, W): the spectrum is that of both."""
    shape, rows, columns = tuple(shape), rows.double(), columns.double()
    (down, right), axes = zip(*map(_spectrum, (rows, columns)), strict=True)
    gains = nonzero(down.unsqueeze(1) * right)

    def both(x: Tensor, left: Tensor, other: Tensor) -> Tensor:
        return left.to(x) @ x @ other.to(x).T

    def filtered(h: Map, x: Tensor) -> Tensor:
        inside = both(x, axes[0], axes[1])
        return both(h(gains.to(x)) * inside, axes[0].T, axes[1].T)

    return LinearOperator(
        name,
        shape,
        (*shape[:-2], len(rows), len(columns)),
        lambda x: both(x, rows, columns),
        lambda y: both(y, rows.T, columns.T),
        filtered,
    )


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values, zeros included, and V^T."""
    _, values, axes = torch.linalg.svd(matrix, full_matrices=True)
    return torch.cat([values, values.new_zeros(len(axes) - len(values))]), axes


def nonzero(values: Tensor) -> Tensor:
    """Singular values with those that are rounding errors set to zero."""
    return values.where(values > NULL * values.max(), 0.0)


def _divided(factor: int, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) < 2 or factor < 1 or any(n < factor or n % factor for n in shape[-2:]):
        hint = "Crop or pad the picture to a multiple of the factor."
        raise FewstepError(f"a picture is not divided by {factor}", value=tuple(shape), hint=hint)
    return shape[-2] // factor, shape[-1] // factor


def _gaussian(width: float) -> Tensor:
    if not 0 < width < math.inf:
        raise FewstepError("a blur needs a positive width", value=width, hint="Give it in pixels, such as 1.5.")
    reach = math.ceil(3 * width)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width).square())
    return torch.outer(line, line) / line.sum() ** 2
