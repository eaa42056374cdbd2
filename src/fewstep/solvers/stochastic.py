"""Stochastic exponential steps with a continuous noise level, from the ODE over ancestral sampling to renoising."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Combination, Plan
from fewstep.plan.combination import number
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import RULES, choice, usable, weighted, weights
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, plain

TINY = torch.finfo(torch.float64).tiny
"""Least variance under a root, whose slope would be infinite at zero."""


@solver(order=2, source="arXiv 2211.01095", history=2, stochastic=True)
def sde_dpm_solver_pp(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    order: int = 2,
    tau: float | Sequence[float] | Tensor = 1.0,
    rule: str = "bh2",
    lower_order_final: bool = True,
) -> Plan:
    """SDE-DPM-Solver++ 1 and 2M (arXiv 2211.01095) at noise level `tau`. Order `order`. Stochastic.

        x_{k+1} = sigma_{k+1} / sigma_k e^{-tau^2 h} x_k + alpha_{k+1} (1 - e^{-g h}) ((1 + 1/2r) x0_k - 1/2r x0_{k-1})
                  + sigma_{k+1} sqrt(1 - e^{-2 tau^2 h}) z,  g = 1 + tau^2

    from the exact alpha_{k+1} Int g e^{-g (lam_{k+1} - l)} x0(l) dl of the SA-Solver family (arXiv 2309.05019). tau 0
    is DPM-Solver++, 1 the reverse SDE (order 1: ancestral sampling, DDIM with eta 1), and infinity renoises the data
    estimate (LCM).

    Args:
        tau: one level, or one per row (K,); a tensor may require gradients (zero for a row at exactly 0).
        rule: bh2 is the published form above; see `integrals.RULES`.

    Raises:
        PlanError: a tau is negative or not a number, or there is not one per row.
    """
    levels = _levels(tau, len(grid))
    choice("order", order, (1, 2))
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    updates: list[tuple[Combination, Tensor | float]] = []
    for k, level in enumerate(levels):
        if bool(s.sigma[k + 1] == 0):  # the data estimate, whatever the noise level
            updates.append((s.alpha[k + 1] * s.data(k), 0.0))
            continue
        points = min(order, k + 1, len(s) - k if lower_order_final else order)
        nodes = usable(s, "data", k + 1, range(k, k - points, -1))
        weight = weights(s, "data", k, k + 1, nodes, rule=rule, speed=1 + level**2)
        h = s.lam(k + 1) - s.lam(k)
        forget = level**2 * h if level else torch.zeros_like(h)  # from pure noise 0 times infinity is 0
        kept = s.sigma[k + 1] / s.sigma[k] * torch.exp(-forget)
        fresh = s.sigma[k + 1] * (-torch.expm1(-2 * forget)).clamp(min=TINY).sqrt() if level else 0.0
        updates.append((plain(kept) * s.x(k) + weighted(s, "data", weight), fresh))
    taus = [t if math.isfinite(t) else str(t) for t in (number(v) for v in levels)]
    settings = {"order": order, "rule": rule, "lower_order_final": lower_order_final}
    return s.plan(updates, "sde_dpm_solver_pp", tau=taus[0] if len({*taus}) == 1 else taus, **settings)


@solver(order=1, source="arXiv 2403.07319", stochastic=True)
def residual_shift(process: Process, prediction: Prediction, grid: Grid) -> Plan:
    """The posterior of residual shifting (ResShift, arXiv 2403.07319, eq. 6), on any process. Stochastic.

        x_{k+1} = alpha_{k+1} x0_k + sigma_{k+1}^2 / sigma_k eps_k + sigma_{k+1} sqrt(1 - sigma_{k+1}^2 / sigma_k^2) z

    The ancestral step of variance that only grows, whatever alpha does; where alpha is 1 it is `euler_ancestral`. On
    `ResidualShift` this is eta_{k+1} / eta_k x_k + (1 - eta_{k+1} / eta_k) x0_k and noise of variance
    kappa^2 eta_{k+1} (1 - eta_{k+1} / eta_k).
    """
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        shrink = s.sigma[k + 1] / s.sigma[k]
        fresh = s.sigma[k + 1] * (1 - shrink**2).clamp(min=0).sqrt()
        kept = plain(s.sigma[k + 1] * shrink)
        updates.append((plain(s.alpha[k + 1]) * s.data(k) + kept * s.noise(k), fresh))
    return s.plan(updates, "residual_shift")


def _levels(tau: float | Sequence[float] | Tensor, count: int) -> list[float | Tensor]:
    """One noise level per row: numbers, or 0-dim tensors where gradients are wanted."""
    values = torch.as_tensor(tau, dtype=torch.float64)
    if not bool((values.detach() >= 0).all()):
        raise PlanError("tau must not be negative", value=tau, hint="0 is the ODE, 1 ancestral sampling.")
    if values.ndim and values.shape != (count,):
        raise PlanError(
            f"tau must be one number, or one for each of {count} rows",
            value=tuple(values.shape),
            hint="Pass a list as long as the grid.",
        )
    rows = values.expand(count)
    return list(rows.unbind()) if rows.requires_grad else rows.tolist()
