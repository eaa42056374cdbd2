"""Solvers: functions (process, prediction, grid) -> Plan. Grids are values of their own."""

from collections.abc import Callable

from fewstep.plan import Plan
from fewstep.solvers import grids
from fewstep.solvers.adams import deis_log_rho, deis_rhoab, deis_tab, ipndm, lms
from fewstep.solvers.consistency import consistency, lcm, tcd
from fewstep.solvers.dpm_solver import dpm_solver, dpm_solver_pp_2m, dpm_solver_pp_3m, unipc
from fewstep.solvers.dpm_solver_v3 import dpm_solver_v3
from fewstep.solvers.estimation import estimate_statistics
from fewstep.solvers.facts import FACTS, SolverFacts
from fewstep.solvers.first_order import ddim, euler, euler_ancestral
from fewstep.solvers.first_step import analytic_first_step
from fewstep.solvers.grids import Grid
from fewstep.solvers.intermediate import amed
from fewstep.solvers.per_step import Decision, per_step
from fewstep.solvers.runge_kutta import heun, rho_rk
from fewstep.solvers.singlestep import dpm_solver_2s, dpm_solver_3s, dpm_solver_pp_2s, dpm_solver_pp_3s
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.stochastic import sde_dpm_solver_pp

SOLVERS: dict[str, Callable[..., Plan]] = {
    f.__name__: f
    for f in (
        *(ddim, euler, euler_ancestral, consistency, lcm, tcd),
        *(dpm_solver, dpm_solver_pp_2m, dpm_solver_pp_3m, unipc),
        *(deis_tab, deis_rhoab, deis_log_rho, lms, ipndm),
        *(dpm_solver_2s, dpm_solver_3s, dpm_solver_pp_2s, dpm_solver_pp_3s),
        *(heun, rho_rk, sde_dpm_solver_pp),
    )
}
"""Every solver by name; a registered solver is tested because it is registered."""

PARAMETRIC = {"amed": amed, "dpm_solver_v3": dpm_solver_v3, "per_step": per_step}
"""Solvers made of numbers that were learned, measured or searched for: places, statistics, decisions."""

__all__ = [
    "FACTS",
    "PARAMETRIC",
    "SOLVERS",
    "Decision",
    "SolverFacts",
    "Grid",
    "ModelStatistics",
    "analytic_first_step",
    "estimate_statistics",
    "grids",
    *SOLVERS,
    *PARAMETRIC,
]
