"""What is known of each solver at its default options, as data for searches, tables and tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SolverFacts:
    """Order of convergence, evaluations per step of the grid, and how many past estimates an update reads.

    A solver of `history` p reaches its order when the first p - 1 states are of that accuracy; with its own low-order
    start, order 2 at most. `processes` is "discrete" where the solver counts steps of a discrete process.
    """

    order: int
    source: str
    calls: int = 1
    history: int = 1
    stochastic: bool = False
    processes: str = "any"


FACTS = {
    "ddim": SolverFacts(1, "arXiv 2010.02502"),
    "euler": SolverFacts(1, "arXiv 2206.00364"),
    "euler_ancestral": SolverFacts(1, "k-diffusion", stochastic=True),
    "consistency": SolverFacts(1, "arXiv 2303.01469", stochastic=True),
    "lcm": SolverFacts(1, "arXiv 2310.04378", stochastic=True, processes="discrete"),
    "tcd": SolverFacts(1, "arXiv 2402.19159", stochastic=True),
    "dpm_solver": SolverFacts(2, "arXiv 2206.00927", history=2),
    "dpm_solver_pp_2m": SolverFacts(2, "arXiv 2211.01095", history=2),
    "dpm_solver_pp_3m": SolverFacts(3, "arXiv 2211.01095", history=3),
    "unipc": SolverFacts(3, "arXiv 2302.04867", history=2),
    "deis_tab": SolverFacts(4, "arXiv 2204.13902", history=4),
    "deis_rhoab": SolverFacts(4, "arXiv 2204.13902", history=4),
    "deis_log_rho": SolverFacts(3, "arXiv 2204.13902", history=3),
    "lms": SolverFacts(4, "k-diffusion", history=4),
    "ipndm": SolverFacts(2, "arXiv 2202.09778", history=4),
    "dpm_solver_2s": SolverFacts(2, "arXiv 2206.00927"),
    "dpm_solver_3s": SolverFacts(3, "arXiv 2206.00927"),
    "dpm_solver_pp_2s": SolverFacts(2, "arXiv 2211.01095"),
    "dpm_solver_pp_3s": SolverFacts(3, "arXiv 2211.01095"),
    "heun": SolverFacts(2, "arXiv 2206.00364", calls=2),
    "rho_rk": SolverFacts(3, "arXiv 2204.13902", calls=3),
    "sde_dpm_solver_pp": SolverFacts(2, "arXiv 2211.01095", history=2, stochastic=True),
}
"""Facts of every solver in `SOLVERS`."""
