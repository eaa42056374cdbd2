"""Singlestep DPM-Solver: blocks of two or three grid times, each update starting from the state at the block's head.

The grid's times are ALL network calls, those inside a block included; the inner ratios r1 and r2 follow from the grid.
"""

from __future__ import annotations

from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import RULES, choice, step
from fewstep.solvers.stages import Stages


def dpm_solver_2s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2") -> Plan:
    """DPM-Solver-2, noise form (arXiv 2206.00927, algorithm 1). Order 2, two evaluations per block."""
    return _singlestep("dpm_solver_2s", process, prediction, grid, "noise", 2, rule)


def dpm_solver_3s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "exact") -> Plan:
    """DPM-Solver-3, noise form (arXiv 2206.00927, algorithm 2). Order 3, three evaluations per block.

    `rule` is that of the inner slope; diffusers takes bh2.
    """
    return _singlestep("dpm_solver_3s", process, prediction, grid, "noise", 3, rule)


def dpm_solver_pp_2s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "bh2") -> Plan:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1). Order 2, two evaluations per block."""
    return _singlestep("dpm_solver_pp_2s", process, prediction, grid, "data", 2, rule)


def dpm_solver_pp_3s(process: Process, prediction: Prediction, grid: Grid, *, rule: str = "exact") -> Plan:
    """DPM-Solver++(3S) (arXiv 2211.01095). Order 3, three evaluations per block."""
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
