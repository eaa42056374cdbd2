"""The fitted form: integrals of DPM-Solver-v3 over measured statistics, step by step so that nothing overflows."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Combination
from fewstep.solvers.stages import Stages, plain
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.taylor import Affine, ExactStep, ExpansionForm

STEEPEST = 300.0
"""Largest exponent of a step's integrals; beyond, float64 loses the small terms and then overflows."""

HIGHEST = 5
"""Moments made of every step: order 4 and its corrector."""


def fitted_form(s: Stages, statistics: ModelStatistics) -> ExpansionForm:
    """f = (sigma eps - l x) / alpha with f' = s f + b taken out: q = e^{-S} f - Int e^{-S} b (arXiv 2310.13268, eq. 8).

    L, S and the integral of e^{-S} b are counted from the base of each step. The statistics are piecewise linear
    between their nodes; every piece is integrated by Gauss quadrature. Moments of a step:
    -alpha_t Int e^{L - L_t + S} (lam - lam_s)^k / k! dlam, and the constant that b leaves.
    """

    @cache
    def residual(j: int) -> Combination:
        """f at node j."""
        rho, slope = s.sigma[j] / s.alpha[j], statistics.at(s.lam(j))[0] / s.alpha[j]
        return plain(rho) * s.noise(j) - plain(slope) * s.x(j)

    @cache
    def node(j: int) -> tuple[Tensor, Tensor]:
        """L and S at node j."""
        return statistics.integrals(s.lam(j))[1:]

    @cache
    def interval(base: int) -> tuple[ExactStep, Tensor]:
        return _integrated(s, statistics, base, node(base), node(base + 1)[0])

    def growth(j: int, base: int) -> Tensor:
        """e^{S_base - S_j}."""
        return torch.exp(node(base)[1] - node(j)[1])

    def drift(j: int, base: int) -> Tensor:
        """Int_base^j e^{-(S - S_base)} b dlam."""
        if j > base:
            return interval(base)[1]
        total = torch.zeros((), dtype=torch.float64)
        for i in range(j, base):
            total = total - growth(i, base) * interval(i)[1]
        return total

    def span(base: int, target: int, order: int) -> ExactStep:
        return interval(base)[0]

    def value(j: int, base: int) -> Affine:
        """q at node j counted from `base`: e^{-S_j} f_j - Int_base^j e^{-S} b."""
        f = residual(j)
        return (f, 0.0) if j == base else (plain(growth(j, base)) * f, -drift(j, base))

    return ExpansionForm(span, value)


def _integrated(
    s: Stages, statistics: ModelStatistics, base: int, at_base: tuple[Tensor, Tensor], at_end: Tensor
) -> tuple[ExactStep, Tensor]:
    """The span from `base` to the next node, and its Int e^{-S} b; L and S at the base, L at the end."""
    start, end = s.lam(base), s.lam(base + 1)
    inside = statistics.between(start, end)
    knots = torch.cat([start.reshape(1), inside, end.reshape(1)])
    nodes, weights, partial = _gauss()
    widths = knots.diff().unsqueeze(1)
    points = knots[:-1].unsqueeze(1) + widths * nodes  # (cells, 4)
    spread = [1] * len(statistics.shape)
    measure = (widths * weights).reshape(*points.shape, *spread)
    b, L, S = statistics.integrals(points)
    (L_start, S_start), L_end = at_base, at_end
    S = S - S_start
    exponent = L - L_end + S
    _refuse_steep(exponent, S)
    # the integral of e^{-S} b up to each point: whole cells before, then the quadrature polynomial of this one
    rates = torch.exp(-S) * b
    cells = (measure * rates).sum(1)
    before = cells.cumsum(0) - cells
    drift = before.unsqueeze(1) + widths.reshape(-1, 1, *spread) * torch.einsum("qp,cp...->cq...", partial, rates)
    density = -s.alpha[base + 1] * measure * torch.exp(exponent)
    away = (points - start).reshape(*points.shape, *spread)
    moments = [(density * away**k).sum((0, 1)) / math.factorial(k) for k in range(HIGHEST)]
    kept = s.alpha[base + 1] / s.alpha[base] * torch.exp(L_start - L_end)
    return (kept, moments, (density * drift).sum((0, 1))), cells.sum(0)


@cache
def _gauss(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre points and weights on [0, 1], and [q, p]: the integral of basis polynomial p up to point q."""
    x, w = np.polynomial.legendre.leggauss(count)
    nodes, weights = (x + 1) / 2, w / 2
    basis = np.linalg.inv(np.vander(nodes, increasing=True))  # coefficients [power, p]
    power = np.arange(count)
    partial = (nodes[:, None] ** (power + 1) / (power + 1)) @ basis
    return torch.from_numpy(nodes), torch.from_numpy(weights), torch.from_numpy(partial)


def _refuse_steep(*exponents: Tensor) -> None:
    steepest = float(torch.stack([e.detach().abs().max() for e in exponents]).max())
    if not steepest < STEEPEST:
        raise PlanError(
            "the statistics change too fast for steps this long: exponent",
            value=steepest,
            hint="Take more steps, `statistics.averaged()`, or `statistics.linear()` (l alone).",
        )
