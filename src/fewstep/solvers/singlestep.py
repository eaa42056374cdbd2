"""Singlestep DPM-Solver: blocks of two or three grid times, each update starting from the state at the block's head.

The grid's times are ALL network calls, those inside a block included; the inner ratios r1 and r2 follow from the grid.
"""

from __future__ import annotations

from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import RULES, choice, step
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages


@solver(order=2, source="arXiv 2206.00927")
def dpm_solver_2s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2") -> Plan:
    """DPM-Solver-2, noise form (arXiv 2206.00927, algorithm 1; any r_1: algorithm 4). Two evaluations per block.

        u       = alpha_m / alpha_s x_s - sigma_m (e^{r h} - 1) eps_s
        x_{s+2} = alpha_{s+2} / alpha_s x_s - sigma_{s+2} (e^h - 1) (eps_s + (eps_u - eps_s) / 2r)

    from the head s of a block over its inner node m = s + 1; h = lam_{s+2} - lam_s, r = (lam_m - lam_s) / h.

    Args:
        rule: bh2 is the published form; see `integrals.RULES`.
    """
    return _singlestep("dpm_solver_2s", process, prediction, grid, "noise", 2, rule)


@solver(order=3, source="arXiv 2206.00927")
def dpm_solver_3s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "exact") -> Plan:
    """DPM-Solver-3, noise form (arXiv 2206.00927, algorithm 2). Three evaluations per block.

        u       = alpha_m / alpha_s x_s - sigma_m (e^{r h} - 1) eps_s
        v       = alpha_n / alpha_s x_s - sigma_n (e^{q h} - 1) eps_s
                  - sigma_n q/r ((e^{q h} - 1) / q h - 1) (eps_u - eps_s)
        x_{s+3} = alpha_{s+3} / alpha_s x_s - sigma_{s+3} (e^h - 1) eps_s
                  - sigma_{s+3} / q ((e^h - 1) / h - 1) (eps_v - eps_s)

    from the head s of a block over its inner nodes m = s + 1 and n = s + 2; h = lam_{s+3} - lam_s,
    r = (lam_m - lam_s) / h, q = (lam_n - lam_s) / h (the paper's r_1 and r_2).

    Args:
        rule: that of the slope in v; diffusers takes bh2.
    """
    return _singlestep("dpm_solver_3s", process, prediction, grid, "noise", 3, rule)


@solver(order=2, source="arXiv 2211.01095")
def dpm_solver_pp_2s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2") -> Plan:
    """DPM-Solver++(2S), data form (arXiv 2211.01095, algorithm 1). Two evaluations per block.

        u       = sigma_m / sigma_s x_s - alpha_m (e^{-r h} - 1) x0_s
        x_{s+2} = sigma_{s+2} / sigma_s x_s - alpha_{s+2} (e^{-h} - 1) ((1 - 1/2r) x0_s + 1/2r x0_u)

    in the letters of `dpm_solver_2s`.

    Args:
        rule: bh2 is the published form; see `integrals.RULES`.
    """
    return _singlestep("dpm_solver_pp_2s", process, prediction, grid, "data", 2, rule)


@solver(order=3, source="arXiv 2211.01095")
def dpm_solver_pp_3s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "exact") -> Plan:
    """DPM-Solver++(3S), data form (arXiv 2211.01095). Three evaluations per block.

        u       = sigma_m / sigma_s x_s - alpha_m (e^{-r h} - 1) x0_s
        v       = sigma_n / sigma_s x_s - alpha_n (e^{-q h} - 1) x0_s
                  + alpha_n q/r ((e^{-q h} - 1) / q h + 1) (x0_u - x0_s)
        x_{s+3} = sigma_{s+3} / sigma_s x_s - alpha_{s+3} (e^{-h} - 1) x0_s
                  + alpha_{s+3} / q ((e^{-h} - 1) / h + 1) (x0_v - x0_s)

    in the letters of `dpm_solver_3s`.

    Args:
        rule: that of the slope in v; diffusers takes bh2.
    """
    return _singlestep("dpm_solver_pp_3s", process, prediction, grid, "data", 3, rule)


def _singlestep(
    name: str, process: Process, prediction: Prediction, grid: Grid, form: str, order: int, rule: str
) -> Plan:
    choice("rule", rule, RULES)
    s = Stages(process, prediction, grid)
    clean = grid.end is None
    updates = []
    for base, size in _blocks(len(s), order, clean):
        for inner in range(size):
            now = base + inner
            # the third update needs no slope at its middle node: the two outer ones give order 3
            nodes = [base] if inner == 0 else [base, now]
            chosen = rule if inner == 1 else "exact"
            updates.append((step(s, form, base, now + 1, nodes, rule=chosen), 0.0))
    return s.plan(updates, name, rule=rule)


def _blocks(calls: int, order: int, clean: bool) -> list[tuple[int, int]]:
    """(first call, calls) of each block: full ones, then what is left; a clean end is reached by a block of one."""
    left = calls - 1 if clean else calls
    sizes = [order] * (left // order) + ([left % order] if left % order else []) + ([1] if clean else [])
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
