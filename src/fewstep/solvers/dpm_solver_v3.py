"""DPM-Solver-v3: the exponential integrator whose form is fitted to the model by its statistics."""

from __future__ import annotations

from fewstep.plan import Identity, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.fitted import fitted_form
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import choice
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.taylor import Strategy, integrate

CORRECTORS = ("none", "full", "half")


@solver(order=2, source="arXiv 2310.13268", history=2, needs=("statistics",))
def dpm_solver_v3(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    statistics: ModelStatistics,
    order: int = 2,
    pseudo: bool = False,
    corrector: str = "none",
    corrector_pseudo: bool = True,
    lower_order_final: bool = True,
) -> Plan:
    """DPM-Solver-v3 (arXiv 2310.13268, eq. 9, f of eq. 6, q of eq. 8). Order `order`, 1 to 3, plus 1 if corrected.

        y_{k+1} = e^{L_k - L_{k+1}} y_k - Int_{lam_k}^{lam_{k+1}} e^{L(u) - L_{k+1} + S(u)} (q(u) + B(u)) du,
        q = e^{-S} f - B,  f = (sigma eps - l x) / alpha,  L' = l,  S' = s,  B' = e^{-S} b,  S(lam_k) = B(lam_k) = 0

    with q by its Taylor polynomial at lam_k (eq. 12), whose derivatives are differences over past nodes (eq. 13). The
    statistics l, s, b make q change as little as they can. (l, s, b) = (1, 0, 0) is DPM-Solver++, (0, -1, 0)
    DPM-Solver, in their Taylor forms. The times need not be nodes of the statistics. A corrected state keeps the f of
    the predicted one. A step to a clean end, or from a time without signal, is DDIM.

    Args:
        statistics: of this model at this guidance, from `estimate_statistics`; the plan then belongs to that model.
        pseudo: the k-th derivative from the k nearest points alone, instead of all of them (eq. 15).
        corrector: `full`, `none`, or `half`: only states above half of the noisiest time.
        corrector_pseudo: the same choice for the corrector.

    Raises:
        PlanError: the grid leaves the range of the statistics, or they are too steep for its steps.
    """
    choice("order", order, (1, 2, 3))
    choice("corrector", corrector, CORRECTORS)
    s = Stages(process, prediction, grid)
    form = fitted_form(s, statistics)
    strategies = []
    for k in range(len(s)):
        p = min(order, k + 1, len(s) - k if lower_order_final else order)
        corrects = corrector == "full" or (corrector == "half" and _is_early(s, k + 1))
        strategies.append(
            Strategy(
                form,
                history=range(k - 1, k - p, -1),
                points=_points(p, pseudo),
                corrected=_points(p + 1, corrector_pseudo) if corrects and k + 1 < len(s) else None,
            )
        )
    settings = {"order": order, "pseudo": pseudo, "corrector": corrector, "corrector_pseudo": corrector_pseudo}
    plan = s.plan(integrate(s, strategies), "dpm_solver_v3", lower_order_final=lower_order_final, **settings)
    return plan.replace(identity=Identity(model=statistics.model, guidance=statistics.guidance))


def _points(order: int, pseudo: bool) -> list[int]:
    """From how many points each derivative is taken."""
    return list(range(1, order)) if pseudo else [order - 1] * (order - 1)


def _is_early(s: Stages, k: int) -> bool:
    return k < len(s) and float(s.time(k).detach()) > s.process.noisiest / 2
