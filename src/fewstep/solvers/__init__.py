"""Solvers: functions (process, prediction, grid) -> Plan. Grids are values of their own."""

from fewstep.solvers import grids
from fewstep.solvers.consistency import lcm, tcd
from fewstep.solvers.dpm_solver import dpm_solver_pp_2m
from fewstep.solvers.first_order import ddim, euler, euler_ancestral
from fewstep.solvers.grids import Grid

SOLVERS = {f.__name__: f for f in (ddim, euler, euler_ancestral, dpm_solver_pp_2m, lcm, tcd)}
"""Every solver by name; a registered solver is tested because it is registered."""

__all__ = ["SOLVERS", "Grid", "ddim", "dpm_solver_pp_2m", "euler", "euler_ancestral", "grids", "lcm", "tcd"]
