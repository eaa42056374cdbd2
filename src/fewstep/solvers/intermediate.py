"""Steps through one intermediate point whose place is learned (AMED)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers.grids import Grid
from fewstep.solvers.integrals import step
from fewstep.solvers.registry import solver
from fewstep.solvers.stages import Stages, Update, plain

Numbers = Tensor | Sequence[float]


@solver(order=2, source="arXiv 2312.00094", calls=2, needs=("places",))
def amed(
    process: Process,
    prediction: Prediction,
    grid: Grid,
    *,
    places: Numbers = (),
    scales: Numbers = (),
    time_scales: Numbers = (),
) -> Plan:
    """AMED-Solver (arXiv 2312.00094): two calls per step, the direction being that of the middle alone.

        lam_m = lam_k + r_k h
        x_m   = alpha_m / alpha_k x_k - sigma_m (e^{r_k h} - 1) eps_k
        y_{k+1} = y_k + c_k (rho_{k+1} - rho_k) eps_m,  where eps_m is asked at the time a_k t_m

    r = 1/2, c = a = 1 is DPM-Solver-2. Order 2 there, else 1. Differentiable in r, c and a. A step to a clean end is
    DDIM, one call.

    Args:
        places: r (K,), strictly between 0 and 1, for the K steps that do not end clean; 1/2 if left out.
        scales: c (K,), near 1; 1 if left out.
        time_scales: a (K,), near 1, a factor of the process time that the network alone sees; 1 if left out.

    Raises:
        PlanError: not one number per step, or one out of range.
    """
    count = len(grid) if grid.end is not None else len(grid) - 1
    r = _numbers("places", places, 0.5, count)
    c, a = _numbers("scales", scales, 1.0, count), _numbers("time_scales", time_scales, 1.0, count)
    if bool(((r <= 0) | (r >= 1)).any()):
        raise PlanError("places must lie strictly between 0 and 1", value=r.tolist(), hint="1/2 is the midpoint.")
    for name, values in (("scales", c), ("time_scales", a)):
        if bool((values <= 0).any()):
            raise PlanError(f"{name} must be positive", value=values.tolist(), hint="1 changes nothing.")
    ends = grid.times if grid.end is None else torch.cat([grid.times, torch.tensor([grid.end], dtype=torch.float64)])
    lam = process.lam(ends)
    if not bool(lam.isfinite().all()):
        raise PlanError(
            "log-SNR is infinite at a time of this grid",
            value=float(ends[~lam.isfinite()][0]),
            hint="Start below pure noise: `first=` of the grid.",
        )
    middles = process.time(lam[:-1] + r * lam.diff())
    times = torch.stack([ends[:-1], middles], 1).flatten()
    s = Stages(process, prediction, grid, times=times if grid.end is not None else torch.cat([times, ends[-1:]]))
    updates: list[Update] = []
    for k in range(count):
        base, middle = 2 * k, 2 * k + 1
        updates.append((step(s, "noise", base, middle, [base]), 0.0))
        ratio = s.alpha[base + 2] / s.alpha[base]
        push = s.sigma[base + 2] - ratio * s.sigma[base]
        updates.append((ratio * s.x(base) + (c[k] * push) * s.noise(middle), 0.0))
    if grid.end is None:
        updates.append((step(s, "noise", 2 * count, 2 * count + 1, [2 * count]), 0.0))
    settings = {"places": r.tolist(), "scales": c.tolist(), "time_scales": a.tolist()}
    plan = s.plan(updates, "amed", **settings)
    rows = list(plan.rows)
    for k in range(count):
        if a[k].requires_grad or float(a[k]) != 1:
            time = process.network_time(a[k] * middles[k])
            rows[2 * k + 1] = dataclasses.replace(rows[2 * k + 1], network_time=plain(time))
    return plan.replace(rows=tuple(rows))


def _numbers(name: str, values: Numbers, default: float, count: int) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64) if len(values) else torch.full((count,), default).double()
    if numbers.shape != (count,) or not bool(numbers.isfinite().all()):
        raise PlanError(
            f"{name} must be {count} finite numbers, one per step that does not end clean",
            value=numbers.tolist(),
            hint="Leave them out for a plain midpoint solver.",
        )
    return numbers
