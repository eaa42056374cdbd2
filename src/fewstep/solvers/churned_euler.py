"""Euler with churn, a noise scale and a step scale: the sampler of AlphaFold 3 and of the predictors that follow it."""

from __future__ import annotations

import torch

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, Update, plain


@solver(order=1, source="doi 10.1038/s41586-024-07487-w")
def churned_euler(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    gamma: float = 0.0,
    gamma_min: float = 0.0,
    noise_scale: float = 1.0,
    step_scale: float = 1.0,
) -> Plan:
    """Euler of AlphaFold 3 in sigma space: `euler` by default. Stochastic with `gamma`.

    Algorithm 18 of the supplement to doi 10.1038/s41586-024-07487-w.

        rho' = rho_k (1 + gamma) where rho_{k+1} > gamma_min, else rho_k
        y'   = y_k + noise_scale sqrt(rho'^2 - rho_k^2) z
        y_{k+1} = y' + step_scale (rho_{k+1} - rho') eps(y', rho')

    A step leaves 1 + step_scale (rho_{k+1} / rho' - 1) of what separates the state from the network's data estimate:
    the last one, to rho 0, leaves 1 - step_scale. That is a lower temperature in 200 steps and ruin in five.

    Args:
        process: no state is raised beyond its noisiest time: to churn the first one, give it room above the grid.
        prediction: what the network's output means.
        grid: the times before they are raised.
        gamma: gamma_0 of the algorithm.
        gamma_min: the level, in units of rho, that the NEXT time must exceed for a state to be raised.
        noise_scale: lambda of the algorithm.
        step_scale: eta of the algorithm.

    Raises:
        PlanError: a negative gamma or noise scale, or a step scale that is not positive.
    """
    if not (gamma >= 0 and noise_scale >= 0 and step_scale > 0):
        hint = "AlphaFold 3 has gamma=0.8, noise_scale=1.003, step_scale=1.5; the ODE has gamma=0, step_scale=1."
        raise PlanError("no sampler has these scales", value=(gamma, noise_scale, step_scale), hint=hint)
    end = torch.zeros(1, dtype=torch.float64)
    if grid.end is not None:
        end = torch.exp(-process.lam(torch.tensor([grid.end], dtype=torch.float64)))
    rho = torch.exp(-process.lam(grid.times))
    after = torch.cat([rho[1:], end])
    most = torch.exp(-process.lam(torch.tensor(process.noisiest, dtype=torch.float64)))
    raised = torch.where(after > gamma_min, torch.minimum(rho * (1 + gamma), most), rho)
    times = torch.where(raised > rho, process.time(-raised.log()), grid.times)
    # exactly zero where nothing is raised: what rounding leaves would make a stochastic plan of an ODE
    fresh = noise_scale * torch.where(raised > rho, raised**2 - rho**2, torch.zeros_like(rho)).sqrt()
    s = Stages(process, prediction, grid, sigma_space=True, times=times)
    updates: list[Update] = []
    for k in range(len(s)):
        update = s.x(k) + plain(step_scale * (after[k] - s.sigma[k])) * s.noise(k)
        updates.append((update, fresh[k + 1] if k + 1 < len(s) else 0.0))
    settings = {"gamma": gamma, "gamma_min": gamma_min, "noise_scale": noise_scale, "step_scale": step_scale}
    plan = s.plan(updates, "churned_euler", **settings)
    if bool(raised[0] > rho[0]):  # the first state is noise of rho_0 and what raises it
        plan = plan.replace(prior_scale=float((rho[0] ** 2 + fresh[0] ** 2).detach().sqrt()))
    return plan
