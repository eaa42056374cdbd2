"""Exponential multistep integrators: DPM-Solver, DPM-Solver++, UniPC. One evaluation per step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import FORMS, RULES, choice, estimate, kept, step, usable, weighted, weights
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
    """DPM-Solver multistep, noise form (arXiv 2206.00927). Order `order`, 1 to 3.

    `rule` bh2 is the published midpoint form of order 2, exact its Taylor form. `legacy`: see `dpm_solver_pp_3m`.
    """
    choice("order", order, (1, 2, 3))
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    settings = {"order": order, "rule": rule, "lower_order_final": lower_order_final}
    updates = multistep(s, form="noise", **settings)  # type: ignore[arg-type]
    if legacy:
        updates = _legacy(s, "noise", order, lower_order_final, updates)
    return s.plan(updates, "dpm_solver", legacy=legacy, **settings)


def dpm_solver_pp_2m(
    process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2", lower_order_final: bool = True
) -> Plan:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2). Order 2.

    `rule` bh2 is the published midpoint form, exact the one diffusers calls heun. `lower_order_final` makes the last
    row first order; a row to a clean end is always first order, because the slope is then taken over an infinite step.
    """
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    updates = multistep(s, form="data", order=2, rule=rule, lower_order_final=lower_order_final)
    return s.plan(updates, "dpm_solver_pp_2m", rule=rule, lower_order_final=lower_order_final)


def dpm_solver_pp_3m(
    process: Process, prediction: Prediction, grid: Grid, *, legacy: bool = False, lower_order_final: bool = True
) -> Plan:
    """DPM-Solver++(3M) (arXiv 2211.01095). Order 3 (with a history of that accuracy).

    `legacy` is the widespread form whose second derivative lacks its factor 2, which makes it order 2; for parity.
    """
    s = Stages(process, prediction, grid)
    updates = multistep(s, form="data", order=3, rule="bh2", lower_order_final=lower_order_final)
    if legacy:
        updates = _legacy(s, "data", 3, lower_order_final, updates)
    return s.plan(updates, "dpm_solver_pp_3m", legacy=legacy, lower_order_final=lower_order_final)


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

    The corrected state is never made. The predicted x_k = A x' + sum P_j q_j and the corrected A x' + sum C_j q_j
    share A x', so the corrected one is x_k + sum (C_j - P_j) q_j, and every row reads a short history. The last state
    is not corrected, which would cost an evaluation.

    Args:
        rule: bh1 or bh2 where the method takes its shortcut (UniP-2, UniC-1); exact for none.
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
