"""Where in time a plan makes its error: each row against the probability flow from the very state it starts at.

With F(j -> k) the fine flow and x_k the states of the plan, the final error is a telescoping sum over the rows,

    x_K - F(0 -> K) x_0 = sum_k [F(k+1 -> K) x_{k+1} - F(k -> K) x_k],

whose terms are what is left at the end of the local errors x_{k+1} - F(k -> k+1) x_k. Nothing is linearised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.diagnostics.field import per_number
from fewstep.diagnostics.flow import POWER, angle, cleanest, flow
from fewstep.errors import PlanError
from fewstep.executor import Network, SamplingProgress, sample
from fewstep.plan import Plan
from fewstep.plan.combination import number
from fewstep.process import Process
from fewstep.solvers.grids import Grid


@dataclass(frozen=True, eq=False)
class Truncation:
    """Errors of a plan of K rows on B samples. Sizes are root mean squares over the numbers of a sample.

    angles: (K + 1,) atan(sigma / alpha) of the states, the end included. times: (K + 1,) process times of the same.
    local: (K, B) error of each row alone, in states scaled to alpha^2 + sigma^2 = 1.
    propagated: (K, B) what is left of it in the final states; None where it was not asked for.
    share: (K, B) part of the final error, signed; each sample's parts add up to one.
    final: (B,) error of the final states.
    reference: (B,) error of the reference itself, estimated by halving its steps.
    """

    angles: Tensor
    times: Tensor
    local: Tensor
    final: Tensor
    reference: Tensor
    propagated: Tensor | None = None
    share: Tensor | None = None


def truncation(
    plan: Plan,
    denoiser: Denoiser,
    state: Tensor,
    *,
    network: Network | Mapping[str, Network] | None = None,
    fine: int = 6,
    propagate: bool = True,
    any_batch: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> Truncation:
    """Local errors of a deterministic plan from its first states (B, ...), and where the final error comes from.

    Args:
        plan: of any solver for the process and prediction of `denoiser`, and any multiple of its scales.
        denoiser: the flow that is right.
        network: what the plan runs, if not the network of `denoiser`: variants by name, a quantized one.
        state: first states, at the scales of the plan's first row (`plan.prior_scale` times noise).
        fine: Runge-Kutta steps (four evaluations each) of the reference per row; K (K + 1) / 2 rows with `propagate`.
        any_batch: the network is bound to no batch size; all earlier states then travel together, which is faster.
        watch: told (rows of the reference done, rows in all).

    Raises:
        PlanError: the plan adds noise: it follows no flow.
    """
    if plan.stochastic:
        raise PlanError("a stochastic plan follows no flow to compare with", hint="Set eta=0 (churn=0, tau=0).")
    levels, count = _levels(plan), plan.steps
    legs = count * (count + 1) // 2 if propagate else 2 * count - 1
    done = 0

    def along(starts: Sequence[Tensor], k: int) -> list[Tensor]:
        nonlocal done
        batches = [torch.cat(list(starts))] if any_batch else starts
        carried = []
        for batch in batches:
            carried += flow(denoiser, batch, levels[k], levels[k + 1], fine).split(len(state))
            done += len(batch) // len(state)
            if watch is not None:
                watch(done, legs)
        return carried

    with torch.no_grad():
        states = _states(plan, denoiser.network if network is None else network, state)
        local, arrived = [], list[Tensor]()  # arrived: where the flow has carried each earlier state of the plan
        coarse = state
        for k in range(count):
            kept = arrived if propagate else arrived[:1]
            carried = along([*kept, states[k]], k)
            local.append(_size(states[k + 1] - carried[-1]) / math.hypot(*levels[k + 1]))
            arrived = carried
            coarse = flow(denoiser, coarse, levels[k], levels[k + 1], max(fine // 2, 1))
    error = states[-1] - arrived[0]
    angles = [angle(*level) for level in levels]
    return Truncation(
        angles=torch.tensor(angles, dtype=torch.float64),
        times=torch.tensor([denoiser.process.time_of_angle(phi) for phi in angles], dtype=torch.float64),
        local=torch.stack(local),
        final=_size(error),
        reference=_size(coarse - arrived[0]),
        **(_left_at_the_end([*arrived, states[-1]]) if propagate else {}),
    )


def _levels(plan: Plan) -> list[tuple[float, float]]:
    """(alpha, sigma) of the K + 1 states."""
    ends = (number(plan.final_alpha), number(plan.final_sigma))
    return [*((number(row.alpha), number(row.sigma)) for row in plan.rows), ends]


def _left_at_the_end(ends: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sizes and shares of the terms of the telescoping sum, from where the flow carries each of the K + 1 states."""
    terms = torch.stack([b - a for a, b in pairwise(ends)]).double().flatten(2)
    error = (ends[-1] - ends[0]).double().flatten(1)
    share = (terms * error).sum(2) / error.square().sum(1).clamp(min=1e-300)
    return {"propagated": terms.square().mean(2).sqrt(), "share": share}


def equalised_grid(
    process: Process, times: Sequence[float] | Tensor, errors: Sequence[float] | Tensor, steps: int, order: int = 1
) -> Grid:
    """A grid of `steps` calls to the clean end, whose rows would make equal errors.

    An error of order p is C h^(p + 1) per row; equal ones make the least sum for a given number of rows. The density of
    calls errors^(1 / (p + 1)) / h is read off a measured plan, with more rows than are wanted if possible.

    Args:
        times: (K,) or (K + 1,) falling process times of the measured plan's calls.
        errors: (K,) one size per row (propagated errors serve the final sample best), the last for the row to the end.
        steps: calls of the new grid; first time and end are kept.
        order: order p of the solver.

    Raises:
        PlanError: lengths that do not fit, or errors that are negative, not finite or all zero.
    """
    at = torch.as_tensor(times, dtype=torch.float64)[: len(errors)]
    sizes = torch.as_tensor(errors, dtype=torch.float64)
    if len(at) != len(sizes) or steps < 1 or order < 1:
        raise PlanError("a grid needs one error per time, and steps", value=(len(at), len(sizes), steps, order))
    if not bool(sizes.isfinite().all()) or bool((sizes < 0).any()) or not float(sizes.sum()):
        raise PlanError("errors must be finite, not negative, and not all zero", value=sizes.tolist())
    ends = [*(process.angle(float(t)) for t in at), cleanest(process)]
    angles = torch.tensor(ends, dtype=torch.float64)
    weights = sizes.clamp(min=1e-9 * float(sizes.max())) ** (1 / (order + 1))
    weights[-1] *= bool(angles[-2] > angles[-1])  # a call at the cleanest time leaves no room behind it
    load = torch.cat([torch.zeros(1).double(), weights.cumsum(0)])
    wanted = load[-1] * torch.arange(steps, dtype=torch.float64) / steps
    left = (torch.searchsorted(load, wanted, right=True) - 1).clamp(max=len(weights) - 1)
    part = (wanted - load[left]) / weights[left]
    place = angles ** (1 / POWER)
    inner = (place[left] + part * (place[left + 1] - place[left])) ** POWER
    # towards the clean end the power would crowd all calls at no noise: equal steps in the angle itself
    inner = torch.where(left == len(at) - 1, angles[left] + part * (angles[left + 1] - angles[left]), inner)
    found = [float(at[0]), *(process.time_of_angle(float(phi)) for phi in inner[1:])]
    return Grid(torch.tensor(found, dtype=torch.float64))


def _states(plan: Plan, network: Network | Mapping[str, Network], state: Tensor) -> list[Tensor]:
    """The K + 1 states of the plan."""
    seen = [state]

    def note(progress: SamplingProgress) -> None:
        seen.append(progress.state)

    seeds, shape = range(len(state)), state.shape[1:]
    sample(plan, network, seeds=seeds, shape=shape, state=state, device=state.device, dtype=state.dtype, callback=note)
    return seen


def _size(x: Tensor) -> Tensor:
    return per_number(x).sqrt().cpu()
