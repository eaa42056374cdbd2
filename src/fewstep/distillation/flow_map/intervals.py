"""Laws of the three times of a jump: start t, middle m, end s."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.distillation import times as laws
from fewstep.distillation.core import Batch
from fewstep.distillation.flow_map.frame import levels
from fewstep.distillation.flow_map.jump import JumpTimes
from fewstep.distillation.flow_map.schedules import Varying, value_at
from fewstep.distillation.part import part
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process

JumpDistribution = Callable[[Batch, Process, torch.Generator], JumpTimes]
"""Draws the times of a batch's jumps."""

TimeGrid = Callable[[Process, Batch], Tensor]
"""Rising process times, float64, from 0 (the data) to the noisiest."""

TimeRule = Callable[[Tensor, Tensor, Batch, Process, torch.Generator], Tensor]
"""A time (B,) for each pair (start t, least time): ends s, the least time being 0, and middles m, it being s.

Where an end is above its start, the two change places.
"""


@part
def jump_times(
    start: laws.TimeDistribution, end: TimeRule | None = None, middle: TimeRule | None = None, equal: float = 0.0
) -> JumpDistribution:
    """Starts from a law, ends and middles from rules.

    Args:
        start: the law of t.
        end: the rule of s; the data unless given.
        middle: the rule of m; none: a target of one leg.
        equal: share of samples with s = t.
    """

    def draw(batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        t = start(batch.size, process, generator, None)
        return _ended(t, end, middle, equal, batch, process, generator)

    return draw


@part
def grid_jump_times(
    grid: TimeGrid, end: TimeRule | None = None, middle: TimeRule | None = None, equal: float = 0.0
) -> JumpDistribution:
    """Starts from a grid whose points above 0 are equally likely, ends and middles from rules.

    Args:
        grid: of the starts.
        end: the rule of s; the data unless given.
        middle: the rule of m; none: a target of one leg.
        equal: share of samples with s = t.
    """

    def draw(batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        points = grid(process, batch)
        t = points[torch.randint(1, len(points), (batch.size,), generator=generator)]
        return _ended(t, end, middle, equal, batch, process, generator)

    return draw


def _ended(
    t: Tensor,
    end: TimeRule | None,
    middle: TimeRule | None,
    equal: float,
    batch: Batch,
    process: Process,
    generator: torch.Generator,
) -> JumpTimes:
    """The times of jumps from one time (B,) each."""
    data = torch.zeros_like(t)
    s = data if end is None else end(t, data, batch, process, generator)
    t, s = torch.maximum(t, s), torch.minimum(t, s)
    if equal:
        s = torch.where(torch.rand(batch.size, generator=generator) < equal, t, s)
    if middle is None:
        return JumpTimes(t, s)
    m = middle(t, s, batch, process, generator)
    return JumpTimes(t, s, torch.minimum(torch.maximum(m, s), t))  # rounding may leave the interval


# --- grids --------------------------------------------------------------------------------------------------------


@part
def uniform_grid(parts: Varying = 50) -> TimeGrid:
    """Equal parts of the time axis; the number of parts may change in training."""

    def points(process: Process, batch: Batch) -> Tensor:
        return torch.linspace(0, process.noisiest, _count(parts, batch) + 1, dtype=torch.float64)

    return points


@part
def karras_grid(parts: Varying = 18, lowest: float = 0.002, highest: float = 80.0, rho: float = 7.0) -> TimeGrid:
    """Equal parts of (sigma / alpha)^(1/rho) between two ratios, with the data below: EDM's grid (arXiv 2206.00364).

    It has parts + 1 times, fewer where the process has no such ratios.
    """

    def points(process: Process, batch: Batch) -> Tensor:
        low, high = (ratio ** (1 / rho) for ratio in (lowest, highest))
        ratio = torch.linspace(low, high, _count(parts, batch), dtype=torch.float64) ** rho
        times = process.time(-ratio.log()).clamp(0, process.noisiest)
        return torch.cat([torch.zeros(1, dtype=torch.float64), times]).unique()

    return points


# --- ends and middles -----------------------------------------------------------------------------------------------


@part
def previous_grid_point(grid: TimeGrid, skip: int = 1) -> TimeRule:
    """The point of a grid `skip` points below t, never below s.

    As an end: the lower edge of the segment that t lies in (PCM, MLCM) or the next point (progressive distillation). As
    a middle: the end of the teacher's step (discrete consistency, LCM, CTM).
    """

    def rule(t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        return torch.maximum(before(grid(process, batch), t, skip), s)

    return rule


@part
def uniform_below(least: float = 0.0) -> TimeRule:
    """Uniform between `least` (a fraction of the range) and t: CTM, TCD."""

    def rule(t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        low = torch.full_like(t, least * process.noisiest).minimum(t)
        return low + (t - low) * torch.rand(batch.size, generator=generator, dtype=torch.float64)

    return rule


@part
def second_draw(law: laws.TimeDistribution) -> TimeRule:
    """A second draw of a law; the later of the two times is the start (MeanFlow)."""

    def rule(t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        return law(batch.size, process, generator, None)

    return rule


@part
def fraction_of_jump(share: Varying = 0.5) -> TimeRule:
    """m = share s + (1 - share) t: alpha-Flow (arXiv 2510.20771); 1/2 is the midpoint."""

    def rule(t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        return t + value_at(share, batch) * (s - t)

    return rule


@part
def shrinking_step(q: float = 2.0, stages: int = 8, k: float = 8.0) -> TimeRule:
    """r = n (1 - q^-(stage + 1) (1 + k sigmoid(-n))) on the noise ratio n = sigma / alpha: ECT (arXiv 2406.14548).

    Args:
        q: as in the formula.
        stages: the stage grows from 0 to `stages` - 1 in equal parts of the training.
        k: as in the formula.
    """

    def rule(t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        stage = int(batch.step / max(1, batch.steps) * stages)
        alpha, sigma = levels(process, t)
        ratio = sigma / alpha.clamp(min=1e-6)
        nearer = ratio * (1 - q ** -(stage + 1) * (1 + k * torch.sigmoid(-ratio))).clamp(min=0)
        found = process.time(-nearer.clamp(min=1e-12).log()).minimum(t)
        return torch.maximum(torch.where(nearer > 0, found, torch.zeros_like(t)), s)

    return rule


# --- whole laws ------------------------------------------------------------------------------------------------------


@part
def random_middle(low: float = 0.2, high: float = 0.8) -> JumpDistribution:
    """One jump from the noisiest time to the data, by way of m uniform in a range of fractions (SlimFlow)."""

    def draw(batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        t = torch.full((batch.size,), process.noisiest, dtype=torch.float64)
        share = low + (high - low) * torch.rand(batch.size, generator=generator, dtype=torch.float64)
        return JumpTimes(t, torch.zeros_like(t), share * t)

    return draw


@part
def dyadic_jumps(finest: int = 7) -> JumpDistribution:
    """Jumps of length 2^-k, k uniform in 0..finest-1, from a multiple of it, in two halves: arXiv 2410.12557."""

    def draw(batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        count = 2 ** torch.randint(finest, (batch.size,), generator=generator)
        which = torch.rand(batch.size, generator=generator, dtype=torch.float64).mul(count).floor()
        t, length = ((which + 1) / count, 1.0 / count.double())
        top = process.noisiest
        return JumpTimes(t * top, (t - length) * top, (t - length / 2) * top)

    return draw


PAIRS = ("all", "consecutive", "to-end", "whole")


@part
def stored_pairs(pairs: str = "all", keys: tuple[float, ...] | None = None) -> JumpDistribution:
    """Jumps between stored states: `all` pairs, `consecutive` ones, from any `to-end`, or the `whole` way only.

    Args:
        pairs: one of these.
        keys: times of the states to use, noisiest first, such as those of the student's steps and 0; every one unless
            given.

    Raises:
        FewstepError: other pairs; when drawn: the batch has no stored times, or none at a key.
    """
    if pairs not in PAIRS:
        raise FewstepError("unknown pairs of stored states", value=pairs, hint=nearest(pairs, PAIRS))

    def draw(batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        if batch.times is None:
            raise FewstepError("stored pairs need a trajectory store", hint="Make one of the teacher's trajectories.")
        stored = batch.times.double().cpu()
        used = torch.arange(len(stored)) if keys is None else key_positions(stored, keys, process)
        start, stop = _drawn_pairs(pairs, len(used), batch.size, generator)
        return JumpTimes(stored[used[start]], stored[used[stop]], None, used[start], used[stop])

    return draw


def _drawn_pairs(pairs: str, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (size,) of starts and ends among `count` states."""
    last = torch.full((size,), count - 1)
    if pairs == "whole":
        return torch.zeros_like(last), last
    if pairs == "all":
        table = torch.combinations(torch.arange(count))
        chosen = table[torch.randint(len(table), (size,), generator=generator)]
        return chosen[:, 0], chosen[:, 1]
    start = torch.randint(count - 1, (size,), generator=generator)
    return start, start + 1 if pairs == "consecutive" else last


NEAR = 2e-3
"""As a share of the range: how far a stored time may lie from the key that it stands for (999 / 2 and 499)."""


def key_positions(stored: Tensor, keys: Sequence[float], process: Process) -> Tensor:
    """Which of the stored times (K,) the keys are.

    Raises:
        FewstepError: fewer than two keys, or one that no stored time is near to.
    """
    wanted = torch.tensor(keys, dtype=torch.float64)
    away, found = (stored.double().cpu()[:, None] - wanted).abs().min(0)
    if len(wanted) < 2 or bool((away > NEAR * process.noisiest).any()):
        held = [round(float(t), 4) for t in stored]
        hint = f"The store has {held}: make it with a multiple of the student's steps."
        raise FewstepError("the store lacks a key state", value=[round(float(t), 4) for t in wanted], hint=hint)
    return found


def before(grid: Tensor, t: Tensor, skip: int) -> Tensor:
    """The grid points `skip` points below each time (B,), the first point beyond the end.

    A time between two points counts as the upper of them.
    """
    above = torch.searchsorted(grid, t - 1e-9 * grid[-1])  # the first point at or above, up to rounding
    return grid[(above - skip).clamp(0, len(grid) - 1)]


def _count(parts: Varying, batch: Batch) -> int:
    count = round(value_at(parts, batch))
    if count < 1:
        raise FewstepError("a grid needs at least one part", value=count)
    return count
