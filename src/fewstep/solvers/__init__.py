"""Solvers: functions (process, prediction, grid) -> Plan. Grids are values of their own.

The equations of their docstrings go from node k of the grid to node k + 1, in these letters:

    alpha_k, sigma_k   scales of the state x_k = alpha_k x0 + sigma_k eps
    rho_k              sigma_k / alpha_k; y_k = x_k / alpha_k is the state of k-diffusion and EDM
    lam_k              -log rho_k, half the log-SNR;  h = lam_{k+1} - lam_k,  r = (lam_k - lam_{k-1}) / h
    x0_k, eps_k        the network's estimates of data and noise at x_k, whatever it predicts
    z                  fresh noise, N(0, I)
"""

import importlib
import pkgutil

from fewstep.solvers import grids
from fewstep.solvers.adams import deis_log_rho, deis_rhoab, deis_tab, ipndm, lms
from fewstep.solvers.consistency import consistency, lcm, tcd
from fewstep.solvers.dpm_solver import dpm_solver, dpm_solver_pp_2m, dpm_solver_pp_3m, unipc
from fewstep.solvers.dpm_solver_v3 import dpm_solver_v3
from fewstep.solvers.estimation import estimate_statistics
from fewstep.solvers.first_order import ddim, euler, euler_ancestral
from fewstep.solvers.first_step import analytic_first_step
from fewstep.solvers.grids import Grid
from fewstep.solvers.intermediate import amed
from fewstep.solvers.langevin import predictor_corrector
from fewstep.solvers.one_more_step import with_one_more_step
from fewstep.solvers.per_step import Decision, per_step
from fewstep.solvers.registry import FACTS, PARAMETRIC, SOLVERS, SolverFacts, solver
from fewstep.solvers.runge_kutta import heun, rho_rk
from fewstep.solvers.singlestep import dpm_solver_2s, dpm_solver_3s, dpm_solver_pp_2s, dpm_solver_pp_3s
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.stochastic import residual_shift, sde_dpm_solver_pp

for _module in pkgutil.iter_modules(__path__):  # a new file joins the tables by being there
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "FACTS",
    "PARAMETRIC",
    "SOLVERS",
    "Decision",
    "Grid",
    "ModelStatistics",
    "SolverFacts",
    "amed",
    "analytic_first_step",
    "consistency",
    "ddim",
    "deis_log_rho",
    "deis_rhoab",
    "deis_tab",
    "dpm_solver",
    "dpm_solver_2s",
    "dpm_solver_3s",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_3s",
    "dpm_solver_v3",
    "estimate_statistics",
    "euler",
    "euler_ancestral",
    "grids",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "per_step",
    "predictor_corrector",
    "residual_shift",
    "rho_rk",
    "sde_dpm_solver_pp",
    "solver",
    "tcd",
    "unipc",
    "with_one_more_step",
]
