"""Gradient search: times, network times, intermediate points and scales, through the plan and the network.

A plan's coefficients are differentiable with respect to its grid, and the executor lets gradients through: learning a
schedule is ordinary descent on the distance from a teacher (LD3, arXiv 2405.15506; AMED, arXiv 2312.00094).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.plan import Plan
from fewstep.plan.combination import number
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers import Grid, amed, analytic_first_step

Parameters = Mapping[str, Tensor]


class Solver(Protocol):
    """Any solver with its options bound."""

    def __call__(self, process: Process, prediction: Prediction, grid: Grid, /) -> Plan: ...  # noqa: D102


@dataclass(frozen=True)
class Learnable:
    """A family of plans with real parameters: where they start, and the plan they stand for.

    `rates`: learning rate of each parameter relative to the search's own.
    """

    start: dict[str, Tensor]
    build: Callable[[Parameters], Plan]
    rates: Mapping[str, float]


def learn_grid(
    process: Process, prediction: Prediction, solver: Solver, grid: Grid, *, network_times: bool = True
) -> Learnable:
    """LD3's parameters: the K - 1 inner times as shares of the range, and what the network is told of each.

    The shares are a softmax, hence the times fall for any parameters; the first and the end stay. A told time may move
    by at most half of the smaller gap beside it (arXiv 2405.15506, section 3).
    """
    times = grid.times.detach().double()
    end = 0.0 if grid.end is None else grid.end
    gaps = -torch.cat([times, torch.tensor([end], dtype=torch.float64)]).diff()
    start = {"gaps": gaps.log()}
    if network_times:
        start["told"] = torch.zeros(len(times), dtype=torch.float64)

    def build(parameters: Parameters) -> Plan:
        part = parameters["gaps"].softmax(0).cumsum(0)[:-1]
        learned = torch.cat([times[:1], times[0] - (times[0] - end) * part])
        plan = solver(process, prediction, Grid(learned, grid.end))
        return _told(plan, parameters["told"]) if network_times else plan

    return Learnable(start, build, {"gaps": 1.0, "told": 1.0})


def learn_intermediate(
    process: Process, prediction: Prediction, grid: Grid, *, analytic_first: bool = False
) -> Learnable:
    """AMED's parameters, one set per step: the place of the middle evaluation, a factor of the step, and of its time.

    AMED predicts the place for each sample with a network on the bottleneck; here it is a number per step, so that the
    result is a plan (arXiv 2312.00094 with one bin). A step to a clean end has one evaluation and no parameters.
    `analytic_first` replaces the first evaluation by eps = x / sigma.
    """
    zeros = torch.zeros(len(grid) - (grid.end is None), dtype=torch.float64)

    def build(parameters: Parameters) -> Plan:
        places = parameters["places"].sigmoid()
        scales = 1 + 0.02 * parameters["scales"].tanh()
        times = 1 + 0.02 * parameters["times"].tanh()
        plan = amed(process, prediction, grid, places=places, scales=scales, time_scales=times)
        return analytic_first_step(plan, "zero") if analytic_first else plan

    start = {"places": zeros, "scales": zeros.clone(), "times": zeros.clone()}
    return Learnable(start, build, {"places": 1.0, "scales": 1.0, "times": 1.0})


def learn_scales(base: Learnable | Plan) -> Learnable:
    """Q-Sched's two scalars per step (arXiv 2509.01624) on top of a plan, or together with what is learned already."""
    inner = base if isinstance(base, Learnable) else Learnable({}, lambda _: base, {})
    steps = inner.build(inner.start).steps
    ones = torch.ones(steps, dtype=torch.float64)

    def build(parameters: Parameters) -> Plan:
        return inner.build(parameters).scaled(parameters["sample_scale"], parameters["output_scale"])

    start = {**inner.start, "sample_scale": ones, "output_scale": ones.clone()}
    return Learnable(start, build, {**inner.rates, "sample_scale": 0.1, "output_scale": 0.1})


class Scored(Protocol):
    """A differentiable objective: `search.problem.Objective` with one score per item."""

    @property
    def size(self) -> int: ...  # noqa: D102

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Descent:
    """What a descent found: the plan with settled numbers, its validation score, and the calls it cost.

    history: (round, validation score) of every look; calls: network evaluations of single samples, a gradient as three.
    """

    plan: Plan
    value: float
    start_value: float
    history: tuple[tuple[int, float], ...]
    calls: float


def descend(
    learnable: Learnable,
    objective: Scored,
    *,
    rounds: int = 120,
    rate: float = 0.05,
    batch: int = 16,
    validation: float = 0.5,
    look_every: int = 10,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> Descent:
    """Adam on the parameters; the best plan on items that gave no gradient.

    LD3 uses RMSprop at 5e-3 for as many epochs as it takes; Adam at ten times that needs fewer network calls here.

    Args:
        validation: share of the items that only choose among iterates.
        batch: items per gradient.

    Raises:
        FewstepError: fewer than two items.
        NonFiniteError: every iterate failed.
    """
    if objective.size < 2:
        raise FewstepError("a descent needs items to learn from and items to choose by", value=objective.size)
    held = min(objective.size - 1, max(1, round(validation * objective.size)))
    train, check = range(objective.size - held), range(objective.size - held, objective.size)
    parameters = {name: p.clone().requires_grad_(True) for name, p in learnable.start.items()}
    optimiser = torch.optim.Adam(
        [{"params": [p], "lr": rate * learnable.rates[name]} for name, p in parameters.items()], betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds, eta_min=0.05 * rate)
    draw = torch.Generator().manual_seed(seed)
    calls, history = 0.0, list[tuple[int, float]]()
    best: tuple[float, Plan] | None = None
    for k in range(rounds + 1):
        if k % look_every == 0 or k == rounds:
            plan = settled(learnable.build({name: p.detach() for name, p in parameters.items()}))
            with torch.no_grad():
                value = float(objective(plan, check).mean())
            calls += plan.steps * len(check)
            history.append((k, value))
            if watch is not None:
                watch(k, value)
            if math.isfinite(value) and (best is None or value > best[0]):
                best = (value, plan)
        if k == rounds:
            break
        items = torch.randperm(len(train), generator=draw)[:batch].tolist()
        with torch.enable_grad():
            plan = learnable.build(parameters)
            loss = -objective(plan, items).mean()
            slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        calls += 3 * plan.steps * len(items)
        for p, slope in zip(parameters.values(), slopes, strict=True):
            p.grad = torch.zeros_like(p) if slope is None else slope.nan_to_num()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        schedule.step()
    if best is None:
        raise NonFiniteError("every iterate of the descent gave NaN", mend="Lower the rate, or check the network.")
    return Descent(best[1], best[0], history[0][1], tuple(history), calls)


def settled(plan: Plan) -> Plan:
    """The plan with learned scalars as plain numbers, ready to be saved."""
    rows = (row.map(lambda c: number(c) if not (isinstance(c, Tensor) and c.ndim) else c.detach()) for row in plan.rows)
    ends = {name: number(getattr(plan, name)) for name in ("final_alpha", "final_sigma", "prior_scale")}
    return plan.replace(rows=tuple(rows), **ends)


def _told(plan: Plan, offsets: Tensor) -> Plan:
    """The plan with what the network is told moved by at most half of the smaller gap beside it."""
    told = torch.stack([torch.as_tensor(row.network_time, dtype=torch.float64) for row in plan.rows])
    gaps = -told.diff()
    wide = gaps.new_full((1,), math.inf)
    room = 0.5 * torch.minimum(torch.cat([wide, gaps]), torch.cat([gaps, wide])).detach()
    moved = told + torch.where(room.isfinite(), room, torch.zeros_like(room)) * offsets.tanh()
    # a network knows no time above the one of pure noise
    rows = (
        dataclasses.replace(row, network_time=torch.minimum(t, told[0].detach()))
        for row, t in zip(plan.rows, moved, strict=True)
    )
    return plan.replace(rows=tuple(rows))
