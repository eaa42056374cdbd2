"""A plan as ComfyUI reads it: sigmas, and the name of its sampler that does the same, where there is one.

ComfyUI holds states as x / alpha and levels as sigma = noise over signal, or as they are for rectified flow; its
samplers are functions of the sigmas and of the clean predictions. Whether one of them is a plan is tried, not looked
up: both are run on arbitrary outputs of a network, and must agree in every row. What is no such sampler (Q-Sched's
scalars, searched coefficients, treatments of the output) leaves the sigmas alone, which are then not the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.plan.combination import number
from fewstep.plan.row import data_of
from fewstep.process import VPDiscrete

WIDTH = 64
"""Numbers of an arbitrary output: two linear laws that agree on them are the same."""
CLOSE = 1e-4
"""Of the largest state: schedulers keep their tables in float32."""
FADED = 1e-3
"""Share of the signal that may be missing at the end, where schedulers stop at the first entry of their table."""
NOISE = 0.01
"""Share by which the first noise may differ: ComfyUI rounds it in one of two ways."""


@dataclass(frozen=True, eq=False)
class PlanRun:
    """A plan run on arbitrary outputs, in ComfyUI's units.

    sigmas: K + 1 levels, of every row and of the end. states: K + 1. clean: K clean predictions. noise: of every row.
    flow: whether signal and noise add up to one.
    """

    sigmas: list[float]
    states: list[Tensor]
    clean: list[Tensor]
    noise: list[float]
    flow: bool

    def slope(self, k: int) -> Tensor:
        """dx / dsigma at row k."""
        return (self.states[k] - self.clean[k]) / self.sigmas[k]

    def euler(self, k: int, to: float) -> Tensor:
        """The state at another level, by the slope of row k."""
        return self.states[k] + (to - self.sigmas[k]) * self.slope(k)


Step = tuple[Tensor, float]
"""The mean of the next state, and how much noise is added to it."""


def sample_euler(walk: PlanRun, k: int) -> Step:
    """First order (DDIM without noise)."""
    return walk.euler(k, walk.sigmas[k + 1]), 0.0


def sample_dpmpp_2m(walk: PlanRun, k: int) -> Step:
    """DPM-Solver++ of second order, arXiv 2211.01095, whose first and last steps are of first order."""
    sigma, to, clean = walk.sigmas[k], walk.sigmas[k + 1], walk.clean[k]
    if to == 0:
        return clean, 0.0
    if k:
        ratio = math.log(walk.sigmas[k - 1] / sigma) / math.log(sigma / to)
        clean = clean + (clean - walk.clean[k - 1]) / (2 * ratio)
    return to / sigma * walk.states[k] + (1 - to / sigma) * clean, 0.0


def sample_heun(walk: PlanRun, k: int) -> Step:
    """Two evaluations in a step, but for the last: rows come in pairs."""
    if k % 2 == 0:
        return walk.euler(k, walk.sigmas[k + 1]), 0.0
    change = walk.sigmas[k] - walk.sigmas[k - 1]
    return walk.states[k - 1] + change * (walk.slope(k - 1) + walk.slope(k)) / 2, 0.0


def sample_lcm(walk: PlanRun, k: int) -> Step:
    """The clean prediction, noised anew (arXiv 2310.04378)."""
    to = walk.sigmas[k + 1]
    return (1 - to if walk.flow else 1.0) * walk.clean[k], to


def sample_euler_ancestral(walk: PlanRun, k: int) -> Step:
    """First order to a lower level, then noise back up; not for flows, where ComfyUI's is another one."""
    sigma, to = walk.sigmas[k], walk.sigmas[k + 1]
    up = min(to, math.sqrt(to**2 * (sigma**2 - to**2)) / sigma)
    return walk.euler(k, math.sqrt(to**2 - up**2)), math.nan if walk.flow else up


SAMPLERS: dict[str, Callable[[PlanRun, int], Step]] = {
    "euler": sample_euler,
    "dpmpp_2m": sample_dpmpp_2m,
    "heun": sample_heun,
    "lcm": sample_lcm,
    "euler_ancestral": sample_euler_ancestral,
}
"""ComfyUI's samplers by its names, in the order in which they are tried."""


def sampler_of(plan: Plan) -> str | None:
    """The name of ComfyUI's sampler that is this plan; None where none is.

    Raises:
        PlanError: see `sigmas_of`.
    """
    walk = walked(plan)
    size = CLOSE * max(float(state.abs().max()) for state in walk.states)
    for name, step in SAMPLERS.items():
        if name != "heun" and len(set(walk.sigmas)) < len(walk.sigmas):
            continue  # a step of several evaluations
        if name == "heun" and plan.steps % 2 == 0:
            continue
        if all(_agree(step(walk, k), walk, k, size) for k in range(plan.steps)):
            return name
    return None


def _agree(step: Step, walk: PlanRun, k: int, size: float) -> bool:
    mean, noise = step
    same = float((mean - walk.states[k + 1]).abs().max()) <= size
    return same and abs(noise - walk.noise[k]) <= CLOSE * max(1.0, walk.sigmas[k])


def sigmas_of(plan: Plan) -> list[float]:
    """ComfyUI's levels, from the first to the end, each once.

    Raises:
        PlanError: the plan asks for what ComfyUI cannot be told by sigmas: other networks, guidance of its own,
            coefficients per channel, an anchor, noise levels that rise, another first noise, times apart from levels.
    """
    sigmas = walked(plan).sigmas
    return [sigma for k, sigma in enumerate(sigmas) if k == 0 or sigma != sigmas[k - 1]]


def walked(plan: Plan) -> PlanRun:
    """The plan on arbitrary outputs; errors of `sigmas_of`."""
    _refuse(plan)
    levels = [(number(row.alpha), number(row.sigma)) for row in plan.rows]
    levels.append((number(plan.final_alpha), number(plan.final_sigma)))
    flow = all(abs(alpha + sigma - 1) < 1e-5 for alpha, sigma in levels)
    units = [1.0 if flow else alpha for alpha, _ in levels]
    sigmas = [sigma / unit for (_, sigma), unit in zip(levels, units, strict=True)]
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(WIDTH, generator=generator, dtype=torch.float64)

    states, outputs, clean = [draw() * number(plan.prior_scale)], [draw() for _ in plan.rows], []
    for k, row in enumerate(plan.rows):
        data = data_of(row, k, plan.prediction)
        clean.append(_sum(data.state, states) + _sum(data.output, outputs))
        states.append(_sum(row.state, states) + _sum(row.output, outputs))
    _refuse_levels(plan, sigmas, flow, units[0])
    noise = [number(row.noise) / unit for row, unit in zip(plan.rows, units[1:], strict=True)]
    return PlanRun(sigmas, [x / unit for x, unit in zip(states, units, strict=True)], clean, noise, flow)


def _sum(coefficients: Any, values: Sequence[Tensor]) -> Tensor:
    return sum((number(c) * values[j] for j, c in coefficients.items()), torch.zeros(WIDTH, dtype=torch.float64))


def _refuse(plan: Plan) -> None:
    first = plan.rows[0]
    for k, row in enumerate(plan.rows):
        wrong = {
            "coefficients per channel": any(isinstance(c, Tensor) and c.ndim for _, c in row.coefficients()),
            "a network of its own": row.network != first.network, "guidance of its own": row.guidance is not None,
            "a treatment of the output": row.hook is not None,
        }  # fmt: skip
        if not wrong["coefficients per channel"]:
            wrong |= {"an anchor": number(row.anchor) != 0, "a constant": number(row.offset) != 0}
            wrong["no signal"] = number(row.alpha) == 0 and plan.prediction.kind != "velocity"
        for what, found in wrong.items():
            if found:
                hint = "Save the plan as a diffusers scheduler: fewstep plan export."
                raise PlanError(f"row {k} has {what}, which sigmas cannot tell ComfyUI", hint=hint)


def _refuse_levels(plan: Plan, sigmas: Sequence[float], flow: bool, unit: float) -> None:
    # ComfyUI takes the last state for the picture: it divides a flow's by the signal, and leaves any other undivided
    kept = 1 - number(plan.final_alpha)
    if any(after > before for before, after in pairwise(sigmas)) or kept > (1e-6 if flow else FADED):
        hint = "Save it as a diffusers scheduler: fewstep plan export."
        raise PlanError("ComfyUI's sigmas fall to zero, this plan's do not", value=sigmas[-3:], hint=hint)
    first = number(plan.prior_scale) / unit
    known = (sigmas[0],) if flow else (sigmas[0], math.hypot(1, sigmas[0]))
    if not any(abs(first / scale - 1) <= NOISE for scale in known) or number(plan.prior_offset) != 0:
        raise PlanError("the plan begins with other noise than ComfyUI makes at this level", value=first)
    if flow:
        times = [number(row.network_time) / number(row.sigma) for row in plan.rows]
        if max(times) - min(times) > 1e-3 * max(times):
            raise PlanError("the network's times are not those of the noise levels", value=times)


def other_times(plan: Plan) -> bool:
    """Whether the network's times are others than ComfyUI finds at these levels in Stable Diffusion's own table.

    Then the sigmas are right only in a model whose noise schedule is the plan's.
    """
    walk = walked(plan)
    if walk.flow:
        return False
    table = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
    times = torch.arange(1000, dtype=torch.float64)
    levels = (table.sigma(times) / table.alpha(times)).log()
    nearest = [int((levels - math.log(sigma)).abs().argmin()) for sigma in walk.sigmas[:-1]]
    return any(abs(near - number(row.network_time)) > 1 for near, row in zip(nearest, plan.rows, strict=True))


def comfyui_nodes(plan: Plan) -> dict[str, Any]:
    """Nodes of a workflow in ComfyUI's API format: `sigmas` (ManualSigmas), and `sampler` (KSamplerSelect) if one fits.

    They go into SamplerCustom or SamplerCustomAdvanced. Numbers are written without exponents, which the node misreads.

    Raises:
        PlanError: see `sigmas_of`.
    """
    text = ", ".join(f"{sigma:.9f}".rstrip("0").rstrip(".") for sigma in sigmas_of(plan))
    title = f"plan of fewstep, {plan.steps} evaluations"
    nodes = {"sigmas": {"class_type": "ManualSigmas", "inputs": {"sigmas": text}, "_meta": {"title": title}}}
    name = sampler_of(plan)
    if name is not None:
        nodes["sampler"] = {
            "class_type": "KSamplerSelect", "inputs": {"sampler_name": name}, "_meta": {"title": title},
        }  # fmt: skip
    return nodes
