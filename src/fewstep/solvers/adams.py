"""Adams methods on the noise estimate: DEIS in time or rho, LMS, iPNDM. One evaluation per step."""

from __future__ import annotations

from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.dpm_solver import multistep
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import choice, step
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, plain

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights for equal steps, newest first."""


@solver(order=4, source="arXiv 2204.13902", history=4)
def deis_tab(
    process: Process, prediction: Prediction, grid: Grid, *, degree: int = 3, lower_order_final: bool = False
) -> Plan:
    """tAB-DEIS (arXiv 2204.13902): a polynomial of `degree` in time. Order degree + 1.

        y_{k+1} = y_k + Int_{rho_k}^{rho_{k+1}} P d rho,
        P = Sum_j eps_{k-j} Prod_{i != j} (t - t_{k-i}) / (t_{k-j} - t_{k-i}),  j = 0, ..., degree

    Stays finite, and at full order, to a clean end.
    """
    return _deis("deis_tab", process, prediction, grid, "time", degree, lower_order_final)


@solver(order=4, source="arXiv 2204.13902", history=4)
def deis_rhoab(
    process: Process, prediction: Prediction, grid: Grid, *, degree: int = 3, lower_order_final: bool = False
) -> Plan:
    """rhoAB-DEIS (arXiv 2204.13902): a polynomial of `degree` in rho. Order degree + 1.

        y_{k+1} = y_k + Int_{rho_k}^{rho_{k+1}} P d rho,
        P = Sum_j eps_{k-j} Prod_{i != j} (rho - rho_{k-i}) / (rho_{k-j} - rho_{k-i}),  j = 0, ..., degree

    For the state y this is `lms`.
    """
    return _deis("deis_rhoab", process, prediction, grid, "rho", degree, lower_order_final)


@solver(order=3, source="arXiv 2204.13902", history=3)
def deis_log_rho(
    process: Process, prediction: Prediction, grid: Grid, *, degree: int = 2, lower_order_final: bool = True
) -> Plan:
    """DEIS with a polynomial of `degree` in log rho (arXiv 2204.13902, as in diffusers). Order degree + 1.

        y_{k+1} = y_k + Int_{rho_k}^{rho_{k+1}} P d rho,
        P = Sum_j eps_{k-j} Prod_{i != j} (lam - lam_{k-i}) / (lam_{k-j} - lam_{k-i}),  j = 0, ..., degree

    This is `dpm_solver` with rule exact.
    """
    return _deis("deis_log_rho", process, prediction, grid, "lambda", degree, lower_order_final)


@solver(order=4, source="k-diffusion", history=4)
def lms(process: Process, prediction: Prediction, grid: Grid, *, order: int = 4) -> Plan:
    """Linear multistep in sigma space (k-diffusion): rhoAB-DEIS of `order` points. Order `order`, 1 to 4.

        y_{k+1} = y_k + Sum_j eps_{k-j} Int_{rho_k}^{rho_{k+1}} L_j d rho,
        L_j = Prod_{i != j} (rho - rho_{k-i}) / (rho_{k-j} - rho_{k-i}),  j = 0, ..., order - 1

    The weights are those of the steps taken, unlike in `ipndm`.
    """
    choice("order", order, (1, 2, 3, 4))
    s = Stages(process, prediction, grid, sigma_space=True)
    updates = multistep(s, form="noise", order=order, variable="rho", lower_order_final=False)
    return s.plan(updates, "lms", order=order)


@solver(order=2, source="arXiv 2202.09778", history=4)
def ipndm(process: Process, prediction: Prediction, grid: Grid, *, order: int = 4) -> Plan:
    """iPNDM (arXiv 2204.13902): Adams weights of equal steps inside a DDIM step (arXiv 2202.09778, eq. 9).

        y_{k+1} = y_k + (rho_{k+1} - rho_k) (55 eps_k - 59 eps_{k-1} + 37 eps_{k-2} - 9 eps_{k-3}) / 24

    and the weights of fewer points (`ADAMS_BASHFORTH`) in the first rows, or for a lower `order` (1 to 4). Order 1 to
    2 whatever `order` says, and 2 only on grids of equal steps in lambda: the weights are those of equal steps in rho.
    `deis_rhoab` is the one with weights for the steps taken.
    """
    choice("order", order, tuple(ADAMS_BASHFORTH))
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        update = step(s, "noise", k, k + 1, [k])
        if k > 0 and order > 1:
            ratio = s.alpha[k + 1] / s.alpha[k]
            push = s.sigma[k + 1] - s.sigma[k] * ratio
            update = plain(ratio) * s.x(k)
            for age, weight in enumerate(ADAMS_BASHFORTH[min(order, k + 1)]):
                update = update + plain(push * weight) * s.noise(k - age)
        updates.append((update, 0.0))
    return s.plan(updates, "ipndm", order=order)


def _deis(
    name: str, process: Process, prediction: Prediction, grid: Grid, variable: str, degree: int, lower: bool
) -> Plan:
    choice("degree", degree, (0, 1, 2, 3))
    s = Stages(process, prediction, grid)
    updates = multistep(s, form="noise", order=degree + 1, variable=variable, lower_order_final=lower)
    return s.plan(updates, name, degree=degree, lower_order_final=lower)
