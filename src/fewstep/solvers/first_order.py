"""First-order solvers: DDIM with eta, and Euler with or without ancestral noise. Order 1, one evaluation per step."""

from __future__ import annotations

from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, plain


@solver(order=1, source="arXiv 2010.02502")
def ddim(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 0.0) -> Plan:
    """DDIM for any process (arXiv 2010.02502, eq. 12 and 16): eta 0 is the ODE, eta 1 ancestral sampling.

        x_{k+1} = alpha_{k+1} x0_k + sqrt(sigma_{k+1}^2 - s^2) eps_k + s z,
        s = eta sigma_{k+1} sqrt(1 - rho_{k+1}^2 / rho_k^2)

    s is the paper's, written in rho so that it holds for every process. In a rectified flow with eta 0 this is plain
    flow Euler.

    Raises:
        PlanError: eta outside of [0, 1].
    """
    if not 0 <= eta <= 1:
        raise PlanError("eta must be between 0 and 1", value=eta, hint="0 is the ODE, 1 ancestral sampling.")
    stages = Stages(process, prediction, grid)
    return stages.plan(_updates(stages, eta), "ddim", eta=eta)


@solver(order=1, source="arXiv 2206.00364")
def euler(process: Process, prediction: Prediction, grid: Grid) -> Plan:
    """Euler in sigma space, the state of k-diffusion (arXiv 2206.00364, algorithm 1 without its correction).

        y_{k+1} = y_k + (rho_{k+1} - rho_k) eps_k

    The trajectory is that of `ddim`, for the state y.
    """
    stages = Stages(process, prediction, grid, sigma_space=True)
    return stages.plan(_updates(stages, 0.0), "euler")


@solver(order=1, source="k-diffusion", stochastic=True)
def euler_ancestral(process: Process, prediction: Prediction, grid: Grid) -> Plan:
    """Euler ancestral in sigma space (k-diffusion): the posterior of DDPM (arXiv 2006.11239, eq. 7) in y. Stochastic.

        y_{k+1} = y_k + (rho_down - rho_k) eps_k + rho_up z,
        rho_up = rho_{k+1} sqrt(1 - rho_{k+1}^2 / rho_k^2),  rho_down^2 = rho_{k+1}^2 - rho_up^2

    The law is that of `ddim` with eta 1, for the state y.
    """
    stages = Stages(process, prediction, grid, sigma_space=True)
    return stages.plan(_updates(stages, 1.0), "euler_ancestral")


def _updates(s: Stages, eta: float) -> list[tuple[Combination, Tensor]]:
    updates = []
    for k in range(len(s)):
        shrink = s.sigma[k + 1] * s.alpha[k] / (s.alpha[k + 1] * s.sigma[k])  # ratio of the two sigma / alpha
        fresh = eta * s.sigma[k + 1] * (1 - shrink**2).clamp(min=0).sqrt()
        kept = (s.sigma[k + 1] ** 2 - fresh**2).clamp(min=0).sqrt()
        updates.append((plain(s.alpha[k + 1]) * s.data(k) + plain(kept) * s.noise(k), fresh))
    return updates
