"""SVDQuant (arXiv 2411.05007): a float branch of low rank takes the outliers, the rest is quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.quant.grids import QuantGrid, decode
from fewstep.quant.scheme import Scheme

Rounder = Callable[[Tensor, Scheme, Tensor | None], tuple[Tensor, QuantGrid]]
_ALTERNATIONS = 3


def randomised_svd(matrix: Tensor, rank: int, seed: int = 0, power: int = 3, extra: int = 8) -> tuple[Tensor, Tensor]:
    """Factors (rows, rank) and (rank, columns) of the best product of that rank (arXiv 0909.4061, alg. 4.4 and 5.1).

    `power` iterations and `extra` directions make it as good as the exact one on the spectra of weights; where the
    sketch would be as large as the matrix, the exact decomposition is taken.
    """
    rows, columns = matrix.shape
    wide = rank + extra
    if wide >= min(rows, columns):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(seed)
        sketch = matrix @ torch.randn(columns, wide, generator=generator).to(matrix)
        for _ in range(power):
            basis, _ = torch.linalg.qr(sketch)
            sketch = matrix @ (matrix.T @ basis)
        basis, _ = torch.linalg.qr(sketch)
        small, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        left = basis @ small
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def split(
    matrix: Tensor, scheme: Scheme, round_: Rounder, second: Tensor | None = None, alternations: int = _ALTERNATIONS
) -> tuple[Tensor, Tensor, Tensor, QuantGrid]:
    """Branch (rows, rank), (rank, columns), codes and grid with up @ down + decode(codes) close to `matrix`.

    Branch and residual are fitted in turn, the best pair under the error of the output (second moments given) or of the
    weight is kept: L = SVD_r(W - Q(R)), R = W - L. The first turn is SVDQuant's own.
    """
    best: tuple[float, Tensor, Tensor, Tensor, QuantGrid] | None = None
    rounded = torch.zeros_like(matrix)
    for _ in range(1 + alternations):
        # in the type that is stored, so that the residual makes up for its rounding too
        up, down = (factor.half().float() for factor in randomised_svd(matrix - rounded, scheme.rank))
        codes, grid = round_(matrix - up @ down, scheme, second)
        rounded = decode(codes, grid, scheme)
        error = output_error(matrix - up @ down - rounded, second)
        if best is None or error < best[0]:
            best = error, up, down, codes, grid
    if best is None:
        raise ValueError("alternations must not be negative")
    return best[1:]


def output_error(difference: Tensor, second: Tensor | None) -> float:
    """Mean squared error of outputs, tr(D H D^T) with second moments H (columns, columns); without them of weights."""
    moved = difference if second is None else difference @ second
    return float((moved * difference).sum())
