"""Exponential multistep integrators: DPM-Solver, DPM-Solver++, UniPC. One evaluation per step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import FORMS, RULES, choice, estimate, kept, step, usable, weighted, weights
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, plain


def multistep(
    s: Stages,
    *,
    form: str,
    order: int,
    variable: str = "lambda",
    rule: str = "exact",
    lower_order_final: bool = True,
) -> list[tuple[Combination, float]]:
    """Updates of an Adams-like solver: row k interpolates the last `order` estimates (fewer at the start and end)."""
    return [
        (step(s, form, k, k + 1, nodes, variable=variable, rule=rule), 0.0)
        for k, nodes in enumerate(_histories(s, order, lower_order_final))
    ]


@solver(order=2, source="arXiv 2206.00927", history=2)
def dpm_solver(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    order: int = 2,
    rule: str = "bh2",
    legacy: bool = False,
    lower_order_final: bool = True,
) -> Plan:
    """DPM-Solver in multistep form (arXiv 2206.00927, proposition 3.1). Order `order`, 1 to 3.

        x_{k+1} = alpha_{k+1} / alpha_k x_k - alpha_{k+1} Int_{lam_k}^{lam_{k+1}} e^{-l} P(l) dl

    with P the polynomial in lambda through the last `order` eps. Order 2 by its default rule:

        x_{k+1} = alpha_{k+1} / alpha_k x_k - sigma_{k+1} (e^h - 1) ((1 + 1/2r) eps_k - 1/2r eps_{k-1})

    Args:
        rule: bh2 is the published midpoint form of order 2, exact its Taylor form (the integral above).
        legacy: see `dpm_solver_pp_3m`.
        lower_order_final: lowers the order of the last rows, down to 1.
    """
    choice("order", order, (1, 2, 3))
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    settings = {"order": order, "rule": rule, "lower_order_final": lower_order_final}
    updates = multistep(s, form="noise", **settings)  # type: ignore[arg-type]
    if legacy:
        updates = _legacy(s, "noise", order, lower_order_final, updates)
    return s.plan(updates, "dpm_solver", legacy=legacy, **settings)


@solver(order=2, source="arXiv 2211.01095", history=2)
def dpm_solver_pp_2m(
    process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2", lower_order_final: bool = True
) -> Plan:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2).

        x_{k+1} = sigma_{k+1} / sigma_k x_k - alpha_{k+1} (e^{-h} - 1) D,  D = (1 + 1/2r) x0_k - 1/2r x0_{k-1}

    Args:
        rule: bh2 is the published midpoint form above; exact, the one diffusers calls heun, gives the slope
            (x0_k - x0_{k-1}) / r its exact weight alpha_{k+1} ((e^{-h} - 1) / h + 1).
        lower_order_final: makes the last row first order; a row to a clean end always is, because the slope is then
            taken over an infinite step.
    """
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    updates = multistep(s, form="data", order=2, rule=rule, lower_order_final=lower_order_final)
    return s.plan(updates, "dpm_solver_pp_2m", rule=rule, lower_order_final=lower_order_final)


@solver(order=3, source="arXiv 2211.01095", history=3)
def dpm_solver_pp_3m(
    process: Process, prediction: Prediction, grid: Grid, *, legacy: bool = False, lower_order_final: bool = True
) -> Plan:
    """DPM-Solver++(3M) (arXiv 2211.01095, proposition 4.1). Order 3 with a history of that accuracy.

        x_{k+1} = sigma_{k+1} / sigma_k x_k + alpha_{k+1} Int_{lam_k}^{lam_{k+1}} e^{l - lam_{k+1}} P(l) dl

    with P the parabola in lambda through x0_k, x0_{k-1}, x0_{k-2}. With D1 = h P'(lam_k) and D2 = h^2 P''(lam_k):

        x_{k+1} = sigma_{k+1} / sigma_k x_k - alpha_{k+1} ((e^{-h} - 1) x0_k - ((e^{-h} - 1) / h + 1) D1
                  + ((e^{-h} - 1 + h) / h^2 - 1/2) D2)

    Args:
        legacy: the widespread form whose D2 is half of that, which makes it order 2; for parity.
        lower_order_final: lowers the order of the last rows, down to 1.
    """
    s = Stages(process, prediction, grid)
    updates = multistep(s, form="data", order=3, rule="bh2", lower_order_final=lower_order_final)
    if legacy:
        updates = _legacy(s, "data", 3, lower_order_final, updates)
    return s.plan(updates, "dpm_solver_pp_3m", legacy=legacy, lower_order_final=lower_order_final)


@solver(order=3, source="arXiv 2302.04867", history=2)
def unipc(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    order: int = 2,
    form: str = "data",
    rule: str = "bh2",
    variable: str = "lambda",
    corrector: bool = True,
    correct_from: int = 1,
    lower_order_final: bool = True,
) -> Plan:
    """UniPC (arXiv 2302.04867, algorithms 1 and 2): predictor UniP of order `order`, raised by one by the corrector.

        x_{k+1} = sigma_{k+1} / sigma_k x_k - alpha_{k+1} (e^{-h} - 1) x0_k - alpha_{k+1} B Sum_m a_m D_m / r_m,
        D_m = x0_{k-m} - x0_k,  r_m = (lam_{k-m} - lam_k) / h,  m = 1, ..., order - 1

    That is UniP. UniC is the same with the estimate at the predicted x_{k+1} as one node more, of r = 1. The a_m B are
    the weights that integrate the interpolant exactly (B cancels), a single a_m is 1/2. This is the data form; the
    noise form has alpha and sigma exchanged, h for -h, and eps for x0.

    The corrected state is never made. The predicted x_k = A x' + sum P_j q_j and the corrected A x' + sum C_j q_j
    share A x', so the corrected one is x_k + sum (C_j - P_j) q_j, and every row reads a short history. The last state
    is not corrected, which would cost an evaluation.

    Args:
        rule: bh1, B = -h, or bh2, B = e^{-h} - 1, for a single a_m (UniP-2, UniC-1); exact takes the exact weight.
        corrector: False is UniP.
        correct_from: first row whose state is corrected.
    """
    choice("order", order, (1, 2, 3))
    choice("form", form, FORMS)
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    options = {"variable": variable, "rule": rule}
    updates: list[tuple[Combination, float]] = []
    before: list[int] = []
    for k, history in enumerate(_histories(s, order, lower_order_final)):
        update = step(s, form, k, k + 1, history, **options)
        if corrector and k >= max(correct_from, 1) and bool(s.alpha[k - 1] != 0):
            predicted = weights(s, form, k - 1, k, before, **options)  # type: ignore[arg-type]
            corrected = weights(s, form, k - 1, k, [*before, k], **options)  # type: ignore[arg-type]
            change = {j: w - predicted[j] if j in predicted else w for j, w in corrected.items()}
            update = update + plain(kept(s, form, k, k + 1)) * weighted(s, form, change)
        before = usable(s, form, k + 1, history, variable)
        updates.append((update, 0.0))
    settings = {"order": order, "form": form, "corrector": corrector, "lower_order_final": lower_order_final}
    return s.plan(updates, "unipc", **options, **settings)


def _histories(s: Stages, order: int, lower_order_final: bool) -> list[Sequence[int]]:
    """For each row, the nodes whose estimates it reads, newest first."""
    histories: list[Sequence[int]] = []
    for k in range(len(s)):
        points = min(order, k + 1, len(s) - k if lower_order_final else order)
        histories.append(range(k, k - points, -1))
    return histories


def _legacy(
    s: Stages, form: str, order: int, lower_order_final: bool, updates: list[tuple[Combination, float]]
) -> list[tuple[Combination, float]]:
    """The updates with every third-order one replaced by the published code's, which halves the second derivative."""
    changed = list(updates)
    for k, history in enumerate(_histories(s, order, lower_order_final)):
        nodes = usable(s, form, k + 1, history)
        if len(nodes) < 3:
            continue
        q = [estimate(s, form, j) for j in nodes]
        h, near, far = (s.lam(a) - s.lam(b) for a, b in ((k + 1, k), (k, k - 1), (k - 1, k - 2)))
        first, second = (h / near) * (q[0] - q[1]), (h / far) * (q[1] - q[2])
        change = (first - second) / ((near + far) / h)
        z, scale = (h, -s.sigma[k + 1]) if form == "noise" else (-h, -s.alpha[k + 1])
        growth = torch.expm1(z)
        slope = first + (near / (near + far)) * (first - second)
        total = growth * q[0] + (growth / z - 1) * slope + ((growth - z) / z**2 - 0.5) * change
        changed[k] = (kept(s, form, k, k + 1) * s.x(k) + scale * total, 0.0)
    return changed
