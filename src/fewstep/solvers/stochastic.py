"""Stochastic exponential steps with a continuous noise level, from the ODE over ancestral sampling to renoising."""

from __future__ import annotations

import torch

from fewstep.errors import PlanError
from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import RULES, choice, usable, weighted, weights
from fewstep.solvers.stages import Stages


def sde_dpm_solver_pp(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    order: int = 2,
    tau: float = 1.0,
    rule: str = "bh2",
    lower_order_final: bool = True,
) -> Plan:
    """SDE-DPM-Solver++ 1 and 2M (arXiv 2211.01095) at noise level `tau`. Order `order`. Stochastic.

    With g = 1 + tau^2 the exact step is x_t = (sigma_t / sigma_s) e^{-tau^2 h} x_s + alpha_t Int g e^{-g (lam_t - l)}
    x0 dl + sigma_t sqrt(1 - e^{-2 tau^2 h}) z (the SA-Solver family, arXiv 2309.05019). tau 0 is DPM-Solver++,
    1 the reverse SDE (order 1: ancestral sampling, DDIM with eta 1), and infinity renoises the data estimate (LCM).

    Raises:
        PlanError: tau is negative.
    """
    if not tau >= 0:
        raise PlanError("tau must not be negative", value=tau, mend="0 is the ODE, 1 ancestral sampling.")
    choice("order", order, (1, 2))
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    updates: list[tuple[Combination, object]] = []
    for k in range(len(s)):
        points = min(order, k + 1, len(s) - k if lower_order_final else order)
        nodes = usable(s, "data", k + 1, range(k, k - points, -1))
        weight = weights(s, "data", k, k + 1, nodes, rule=rule, speed=1 + tau**2)
        h = s.lam(k + 1) - s.lam(k)
        forget = tau**2 * h if tau else torch.zeros_like(h)  # 0 times an infinite step is 0
        kept = s.sigma[k + 1] / s.sigma[k] * torch.exp(-forget)
        fresh = s.sigma[k + 1] * (-torch.expm1(-2 * forget)).sqrt() if tau else 0.0
        updates.append((kept * s.x(k) + weighted(s, "data", weight), fresh))
    settings = {"order": order, "tau": tau, "rule": rule, "lower_order_final": lower_order_final}
    return s.plan(updates, "sde_dpm_solver_pp", **settings)
