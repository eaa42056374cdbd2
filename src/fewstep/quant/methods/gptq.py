"""GPTQ (arXiv 2210.17323): columns are rounded in turn, and each one's error is made up for by those to come."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fewstep.quant.grids import QuantGrid, decode, encode, fit_grid
from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method
from fewstep.quant.methods.low_rank import output_error
from fewstep.quant.scheme import BLOCKS, Scheme


def compensate(
    weight: Tensor, scheme: Scheme, second: Tensor | None, *, damping: float = 0.01, block: int = 128
) -> tuple[Tensor, QuantGrid]:
    """Codes and grid for weight (rows, columns) and second moments H (columns, columns) of its inputs.

    Column j is rounded on its grid; the rest moves by -(w_j - q_j) / U_jj U_j,j+1: with U the upper Cholesky factor of
    H^-1 (alg. 1), which is the least squares answer for the columns to come. `damping` times the mean of the diagonal
    is added to H. Columns go in order (groups stay together). For a linear layer under a fixed grid no column order can
    make the result worse than the error bound of nearest rounding, but nearest can win by luck: the better is kept.
    """
    codes, grid = fit_grid(weight, scheme)
    if second is None:
        return codes, grid
    hessian = second.float().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean() + dead)
    upper = _upper_factor(hessian)
    work, chosen = weight.float().clone(), torch.empty_like(codes)
    columns = weight.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty_like(work[:, start:stop])
        for j in range(start, stop):
            step = grid.columns(j, j + 1, columns, scheme)
            plain = _per_column(scheme)
            chosen[:, j : j + 1] = encode(work[:, j : j + 1], step, plain)
            error = (work[:, j] - decode(chosen[:, j : j + 1], step, plain)[:, 0]) / upper[j, j]
            work[:, j:stop] -= error[:, None] * upper[j, j:stop]
            errors[:, j - start] = error
        work[:, stop:] -= errors @ upper[start:stop, stop:]
    moments = second.float()
    won = [output_error(weight - decode(c, grid, scheme), moments) for c in (chosen, codes)]
    return (chosen if won[0] <= won[1] else codes), grid


def _per_column(scheme: Scheme) -> Scheme:
    """The scheme for a single column whose grid is already spread."""
    block = BLOCKS.get(scheme.weight_format)
    return Scheme(scheme.weight_bits, group_size=block, weight_format=scheme.weight_format)


def _upper_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor U of H^-1 = U^T U, in float64: H of wide layers is nearly singular."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    return torch.linalg.cholesky(inverse, upper=True).to(hessian.dtype)


@rounding_method(argument("a positive damping", 1e-12, shown="0.01"), calibrated=True)
def gptq(damping: float = 0.01) -> RoundingMethod:
    """`gptq` or `gptq:DAMPING` (default 0.01)."""
    return RoundingMethod(round=functools.partial(compensate, damping=damping))
