"""Samplers of consistency students: LCM (jump to the data, renoise) and TCD (jump to a later time, renoise in part)."""

from __future__ import annotations

import torch

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers.grids import Grid
from fewstep.solvers.stages import Stages


def lcm(
    process: VPDiscrete,
    prediction: Prediction,
    grid: Grid,
    *,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Plan:
    """Multistep consistency sampling of a latent consistency model (arXiv 2310.04378, algorithm 3). Stochastic.

    The boundary scalings c_skip and c_out are those the student was trained with (eq. 9 with scaled times).
    """
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        time = timestep_scaling * grid.times[k]
        skip = sigma_data**2 / (time**2 + sigma_data**2)
        out = time / (time**2 + sigma_data**2).sqrt()
        clean = out * s.data(k) + skip * s.x(k)
        last = k + 1 == len(s)
        updates.append((clean, 0.0) if last else (s.alpha[k + 1] * clean, s.sigma[k + 1]))
    return s.plan(updates, "lcm", sigma_data=sigma_data, timestep_scaling=timestep_scaling)


def tcd(process: VPDiscrete, prediction: Prediction, grid: Grid, *, eta: float = 0.3) -> Plan:
    """Trajectory consistency sampling (arXiv 2402.19159, algorithm 4): eta (the paper's gamma) 0 is DDIM. Stochastic.

    As in diffusers the last row ends at the first entry of the noise table, and needs a grid that says so: `end=0`.
    """
    if not 0 <= eta <= 1:
        raise PlanError("eta must be between 0 and 1", value=eta, mend="0 is DDIM, 1 renoises completely.")
    s = Stages(process, prediction, grid)
    updates = []
    for k in range(len(s)):
        last = k + 1 == len(s)
        after = torch.zeros(()).double() if last else grid.times[k + 1]
        jump = torch.floor((1 - eta) * after)
        alpha, sigma = process.alpha(jump), process.sigma(jump)
        kept = s.alpha[k + 1] / alpha  # renoising from the jump back to the next time
        fresh = (1 - kept**2).clamp(min=0).sqrt()
        updates.append((kept * (alpha * s.data(k) + sigma * s.noise(k)), 0.0 if last else fresh))
    return s.plan(updates, "tcd", eta=eta)
