"""Families of plans with real parameters: times, network times, intermediate points, scales.

A plan's coefficients are differentiable with respect to its grid, and the executor lets gradients through, so that any
of these can be descended (`descent.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.plan import Plan
from fewstep.plan.combination import number
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers import Grid, amed, analytic_first_step

Parameters = Mapping[str, Tensor]


BoundSolver = Callable[[Process, Prediction, Grid], Plan]
"""Any solver with its options bound."""


@dataclass(frozen=True)
class LearnableSchedule:
    """A family of plans with real parameters: where they start, and the plan they stand for.

    `rates`: learning rate of each parameter relative to the search's own.
    """

    start: dict[str, Tensor]
    build: Callable[[Parameters], Plan]
    rates: Mapping[str, float]


def learn_grid(
    process: Process, prediction: Prediction, solver: BoundSolver, grid: Grid, *, network_times: bool = True
) -> LearnableSchedule:
    """LD3's parameters: the K - 1 inner times as shares of the range, and the network time of each.

    The shares are a softmax, hence the times fall for any parameters; the first and the end stay. A network
    time may move by at most half of the smaller gap beside it (arXiv 2405.15506, section 3).
    """
    times = grid.times.detach().double()
    end = 0.0 if grid.end is None else grid.end
    gaps = -torch.cat([times, torch.tensor([end], dtype=torch.float64)]).diff()
    start = {"gaps": gaps.log()}
    if network_times:
        start["network_times"] = torch.zeros(len(times), dtype=torch.float64)

    def build(parameters: Parameters) -> Plan:
        part = parameters["gaps"].softmax(0).cumsum(0)[:-1]
        learned = torch.cat([times[:1], times[0] - (times[0] - end) * part])
        plan = solver(process, prediction, Grid(learned, grid.end))
        return _moved(plan, parameters["network_times"]) if network_times else plan

    return LearnableSchedule(start, build, {"gaps": 1.0, "network_times": 1.0})


def learn_intermediate(
    process: Process, prediction: Prediction, grid: Grid, *, analytic_first: bool = False
) -> LearnableSchedule:
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
    return LearnableSchedule(start, build, {"places": 1.0, "scales": 1.0, "times": 1.0})


def learn_scales(base: LearnableSchedule | Plan) -> LearnableSchedule:
    """Q-Sched's two scalars per step (arXiv 2509.01624) on top of a plan, or together with what is learned already."""
    inner = base if isinstance(base, LearnableSchedule) else LearnableSchedule({}, lambda _: base, {})
    steps = inner.build(inner.start).steps
    ones = torch.ones(steps, dtype=torch.float64)

    def build(parameters: Parameters) -> Plan:
        return inner.build(parameters).scaled(parameters["sample_scale"], parameters["output_scale"])

    start = {**inner.start, "sample_scale": ones, "output_scale": ones.clone()}
    return LearnableSchedule(start, build, {**inner.rates, "sample_scale": 0.1, "output_scale": 0.1})


def detached(plan: Plan) -> Plan:
    """The plan with learned scalars as plain numbers, ready to be saved."""
    rows = (row.map(lambda c: number(c) if not (isinstance(c, Tensor) and c.ndim) else c.detach()) for row in plan.rows)
    ends = {name: number(getattr(plan, name)) for name in ("final_alpha", "final_sigma", "prior_scale")}
    return plan.replace(rows=tuple(rows), **ends)


def _moved(plan: Plan, offsets: Tensor) -> Plan:
    """The plan with each network time moved by at most half of the smaller gap beside it."""
    times = plan.network_times
    gaps = -times.diff()
    wide = gaps.new_full((1,), math.inf)
    room = 0.5 * torch.minimum(torch.cat([wide, gaps]), torch.cat([gaps, wide])).detach()
    moved = times + torch.where(room.isfinite(), room, torch.zeros_like(room)) * offsets.tanh()
    # a network knows no time above the one of pure noise
    rows = (
        dataclasses.replace(row, network_time=torch.minimum(t, times[0].detach()))
        for row, t in zip(plan.rows, moved, strict=True)
    )
    return plan.replace(rows=tuple(rows))
