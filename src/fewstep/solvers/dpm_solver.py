"""Exponential integrators in half log-SNR."""

from __future__ import annotations

from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.stages import Stages


def dpm_solver_pp_2m(process: Process, prediction: Prediction, grid: Grid, *, lower_order_final: bool = True) -> Plan:
    """DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2). Order 2, one evaluation per step.

    `lower_order_final` makes the last row first order; a row to a clean end is always first order, because the second
    difference is then multiplied by an infinite step.
    """
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        last = k + 1 == len(s)
        clean = bool(s.sigma[k + 1] == 0)
        estimate = s.data(k)
        if k > 0 and not clean and not (last and lower_order_final):
            estimate = estimate + _slope(s, k)
        updates.append((_advance(s, k, estimate), 0.0))
    return s.plan(updates, "dpm_solver_pp_2m", lower_order_final=lower_order_final)


def _advance(s: Stages, k: int, estimate: Combination) -> Combination:
    """The exact solution over one step for a constant data estimate (eq. 9 of the paper)."""
    if bool(s.sigma[k + 1] == 0):
        return s.alpha[k + 1] * estimate
    step = s.lam(k + 1) - s.lam(k)
    return (s.sigma[k + 1] / s.sigma[k]) * s.x(k) - (s.alpha[k + 1] * (-step).expm1()) * estimate


def _slope(s: Stages, k: int) -> Combination:
    """Half a step along the line through the last two data estimates."""
    ahead, behind = s.lam(k + 1) - s.lam(k), s.lam(k) - s.lam(k - 1)
    return (ahead / (2 * behind)) * (s.data(k) - s.data(k - 1))
