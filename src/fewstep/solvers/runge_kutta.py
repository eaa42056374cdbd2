"""Runge-Kutta in rho = sigma / alpha on the state x / alpha: rhoRK-DEIS, and Heun with the churn of EDM.

The grid holds the ends of the steps; each costs as many evaluations as the method has stages. A step to a clean end is
an Euler step, because no network is asked at rho = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Combination, Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import choice
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, plain, refuse_impossible

Tableau = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]
"""Butcher tableau of an explicit method: places of the stages in the step; their rows, and the final row."""

TABLEAUS: dict[str, Tableau] = {
    "midpoint": ((0, 1 / 2), ((1 / 2,), (0, 1))),
    "heun2": ((0, 1), ((1,), (1 / 2, 1 / 2))),
    "kutta3": ((0, 1 / 2, 1), ((1 / 2,), (-1, 2), (1 / 6, 2 / 3, 1 / 6))),
    "heun3": ((0, 1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3), (1 / 4, 0, 3 / 4))),
    "ralston3": ((0, 1 / 2, 3 / 4), ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))),
    "houwen3": ((0, 8 / 15, 2 / 3), ((8 / 15,), (1 / 4, 5 / 12), (1 / 4, 0, 3 / 4))),
    "ssp3": ((0, 1, 1 / 2), ((1,), (1 / 4, 1 / 4), (1 / 6, 1 / 6, 2 / 3))),
    "classic4": ((0, 1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
}
"""Explicit methods by name (arXiv 2204.13902 and its code)."""


@solver(order=3, source="arXiv 2204.13902", calls=3)
def rho_rk(process: Process, prediction: Prediction, grid: Grid, *, method: str = "kutta3") -> Plan:
    """rhoRK-DEIS (arXiv 2204.13902): an explicit Runge-Kutta method of `TABLEAUS` in rho. Order of the method.

        y_{k+1} = y_k + H Sum_i b_i d_i,  d_i = eps(y_k + H Sum_{j < i} a_ij d_j, rho_k + c_i H),  H = rho_{k+1} - rho_k

    Takes as many evaluations per step as the method has stages, and one for a step to a clean end.
    """
    choice("method", method, tuple(TABLEAUS))
    return _plan("rho_rk", process, prediction, grid, TABLEAUS[method], None, method=method)


@solver(order=2, source="arXiv 2206.00364", calls=2)
def heun(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    churn: float = 0.0,
    churn_from: float = 0.0,
    churn_to: float = math.inf,
    churn_noise: float = 1.0,
) -> Plan:
    """Heun of EDM (arXiv 2206.00364, algorithms 1 and 2). Two evaluations per step. Stochastic with `churn`.

        y' = y_k + S_noise sqrt(rho'^2 - rho_k^2) z,  rho' = rho_k (1 + min(S_churn / K, sqrt(2) - 1))
        e  = y' + (rho_{k+1} - rho') eps(y', rho')
        y_{k+1} = y' + (rho_{k+1} - rho') (eps(y', rho') + eps(e, rho_{k+1})) / 2

    `churn`, `churn_from`, `churn_to`, `churn_noise` are S_churn, S_tmin, S_tmax, S_noise, in units of rho. The first
    state is pure noise already and is not churned; no state is churned beyond the noisiest time.

    Raises:
        PlanError: the churn is negative.
    """
    if not churn >= 0:
        raise PlanError("churn must not be negative", value=churn, hint="0 is the deterministic solver.")
    rho = torch.exp(-process.lam(grid.times))
    rate = min(churn / len(grid), math.sqrt(2) - 1)
    raised = torch.minimum(
        rho * (1 + rate), torch.exp(-process.lam(torch.tensor(process.noisiest, dtype=torch.float64)))
    )
    active = (rho >= churn_from) & (rho <= churn_to) & (torch.arange(len(grid)) > 0) & (raised > rho)
    settings = {"churn": churn, "churn_from": churn_from, "churn_to": churn_to, "churn_noise": churn_noise}
    heads = (torch.where(active, raised, rho), churn_noise) if bool(active.any()) else None
    return _plan("heun", process, prediction, grid, TABLEAUS["heun2"], heads, **settings)


def _plan(
    name: str,
    process: Process,
    prediction: Prediction,
    grid: Grid,
    table: Tableau,
    heads: tuple[Tensor, float] | None,
    **settings: object,
) -> Plan:
    """Blocks of stages; `heads` are the raised rho at which blocks begin, and the scale of the noise that raises."""
    refuse_impossible(process, prediction, grid.times, sigma_space=True)
    starts = grid.times if heads is None else _moved(process, grid.times, heads[0])
    places, rows = table
    blocks = _visits(process, grid, starts, places)
    s = Stages(process, prediction, grid, sigma_space=True, times=torch.cat(blocks))
    ends = s.sigma[-1]
    base = 0
    updates: list[tuple[Combination, Tensor | float]] = []
    for k, block in enumerate(blocks):
        target = ends if k + 1 == len(blocks) else torch.exp(-process.lam(grid.times[k + 1]))
        span = target - s.sigma[base]
        for stage in range(len(block)):
            row = rows[stage] if len(block) > 1 else (1.0,)
            update = s.x(base)
            for j, weight in enumerate(row):
                if weight:
                    update = update + plain(weight * span) * s.noise(base + j)
            updates.append((update, 0.0))
        base += len(block)
        if heads is not None and k + 1 < len(blocks):
            fresh = (s.sigma[base] ** 2 - target**2).clamp(min=0).sqrt()
            updates[-1] = (update, heads[1] * fresh)
    return s.plan(updates, name, **settings)


def _visits(process: Process, grid: Grid, starts: Tensor, places: Sequence[float]) -> list[Tensor]:
    """Times of the network calls of each step."""
    after = (
        grid.times[1:]
        if grid.end is None
        else torch.cat([grid.times[1:], torch.tensor([grid.end], dtype=torch.float64)])
    )
    starts, head = starts[: len(after)], starts[len(after) :]  # a step to a clean end makes one call
    share = torch.tensor(places, dtype=torch.float64)
    rho, reach = torch.exp(-process.lam(starts)), torch.exp(-process.lam(after))
    inner = process.time(-(rho.unsqueeze(1) + (reach - rho).unsqueeze(1) * share).log())
    inner = torch.where(share == 0, starts.unsqueeze(1), torch.where(share == 1, after.unsqueeze(1), inner))
    return [*inner.unbind(), *([head] if len(head) else [])]


def _moved(process: Process, times: Tensor, rho: Tensor) -> Tensor:
    """Times of raised rho; a time that was not raised stays exactly itself."""
    same = rho == torch.exp(-process.lam(times))
    return torch.where(same, times, process.time(-rho.log()))
