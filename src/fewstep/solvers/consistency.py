"""Samplers of consistency students: jump to the data and renoise, in full (LCM, CM) or in part (TCD)."""

from __future__ import annotations

import torch

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process, VPDiscrete
from fewstep.solvers.grids import Grid
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages


@solver(order=1, source="arXiv 2303.01469", stochastic=True)
def consistency(process: Process, prediction: Prediction, grid: Grid) -> Plan:
    """Multistep consistency sampling on any process (arXiv 2303.01469, algorithm 1). Stochastic.

        x_{k+1} = alpha_{k+1} x0_k + sigma_{k+1} z

    For students whose data estimate IS their consistency function, as those of flows and of EDM; students of discrete
    processes that were trained with boundary scalings in their time index need `lcm`. The paper counts noise from its
    least level e, sqrt(sigma^2 - e^2); here the data have none.
    """
    s = Stages(process, prediction, grid)
    updates = [(s.alpha[k + 1] * s.data(k), s.sigma[k + 1]) for k in range(len(s))]
    return s.plan(updates, "consistency")


@solver(order=1, source="arXiv 2310.04378", stochastic=True, discrete=True)
def lcm(
    process: VPDiscrete,
    prediction: Prediction,
    grid: Grid,
    *,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Plan:
    """Multistep sampling of a latent consistency model (arXiv 2310.04378, eq. 9 and algorithm 3). Stochastic.

        x_{k+1} = alpha_{k+1} f_k + sigma_{k+1} z,  f_k = c_skip x_k + c_out x0_k,
        c_skip = sigma_data^2 / (u^2 + sigma_data^2),  c_out = u / sqrt(u^2 + sigma_data^2),  u = timestep_scaling t_k

    The boundary scalings are those that the student was trained with.

    Raises:
        PlanError: a process whose time is no step index, where these scalings mean nothing.
    """
    if not isinstance(process, VPDiscrete):
        raise PlanError(
            "the boundary scalings of lcm count the steps of a discrete process",
            value=type(process).__name__,
            hint="Use `consistency`, which serves every process.",
        )
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        time = timestep_scaling * grid.times[k]
        skip = sigma_data**2 / (time**2 + sigma_data**2)
        out = time / (time**2 + sigma_data**2).sqrt()
        clean = out * s.data(k) + skip * s.x(k)
        updates.append((s.alpha[k + 1] * clean, s.sigma[k + 1]))
    return s.plan(updates, "lcm", sigma_data=sigma_data, timestep_scaling=timestep_scaling)


@solver(order=1, source="arXiv 2402.19159", stochastic=True)
def tcd(process: Process, prediction: Prediction, grid: Grid, *, eta: float = 0.3) -> Plan:
    """Trajectory consistency sampling (arXiv 2402.19159, algorithm 4): eta (the paper's gamma) 0 is DDIM. Stochastic.

        x_u = alpha_u x0_k + sigma_u eps_k  at the time u = (1 - eta) t_{k+1},
        x_{k+1} = c x_u + sqrt(sigma_{k+1}^2 - c^2 sigma_u^2) z,  c = alpha_{k+1} / alpha_u

    u is a whole index in a discrete process. diffusers ends at the first entry of the noise table: a grid with `end=0`.

    Raises:
        PlanError: eta outside of [0, 1].
    """
    if not 0 <= eta <= 1:
        raise PlanError("eta must be between 0 and 1", value=eta, hint="0 is DDIM, 1 renoises completely.")
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        if k + 1 == len(s) and grid.end is None:
            updates.append((s.data(k), torch.zeros(()).double()))
            continue
        after = torch.tensor(grid.end, dtype=torch.float64) if k + 1 == len(s) else grid.times[k + 1]
        jump = ((1 - eta) * after).clamp(min=process.cleanest)
        jump = torch.floor(jump) if isinstance(process, VPDiscrete) else jump
        alpha, sigma = process.alpha(jump), process.sigma(jump)
        kept = s.alpha[k + 1] / alpha
        fresh = (s.sigma[k + 1] ** 2 - (kept * sigma) ** 2).clamp(min=0).sqrt()
        updates.append((kept * (alpha * s.data(k) + sigma * s.noise(k)), fresh))
    return s.plan(updates, "tcd", eta=eta)
