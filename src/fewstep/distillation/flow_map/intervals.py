"""Laws of the three times of a jump: start t, middle m, end s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation import times as laws
from fewstep.distillation.core import Batch
from fewstep.distillation.flow_map.frame import levels
from fewstep.distillation.flow_map.jump import JumpTimes
from fewstep.distillation.flow_map.schedules import Varying, value_at
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process

JumpDistribution = Callable[[Batch, Process, torch.Generator], JumpTimes]
"""Draws the times of a batch's jumps."""

TimeGrid = Callable[[Process, Batch], Tensor]
"""Rising process times, float64, from 0 (the data) to the noisiest."""

Rule = Callable[[Tensor, Tensor, Batch, Process, torch.Generator], Tensor]
"""A time (B,) for each pair (start t, least time): ends s, the least time being 0, and middles m, it being s.

Where an end is above its start, the two change places.
"""


@dataclass(frozen=True)
class Intervals:
    """Starts from a law, ends and middles from rules.

    start:
        A law of times, or a grid whose points above 0 are equally likely.
    end:
        The rule of s; the data unless given.
    middle:
        The rule of m; none: a target of one leg.
    equal:
        Share of samples with s = t.
    """

    start: laws.TimeDistribution | UniformGrid | KarrasGrid
    end: Rule | None = None
    middle: Rule | None = None
    equal: float = 0.0

    def __call__(self, batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        """Times of one batch."""
        if isinstance(self.start, (UniformGrid, KarrasGrid)):
            grid = self.start(process, batch)
            t = grid[torch.randint(1, len(grid), (batch.size,), generator=generator)]
        else:
            t = self.start(batch.size, process, generator, None)
        data = torch.zeros_like(t)
        s = data if self.end is None else self.end(t, data, batch, process, generator)
        t, s = torch.maximum(t, s), torch.minimum(t, s)
        if self.equal:
            s = torch.where(torch.rand(batch.size, generator=generator) < self.equal, t, s)
        if self.middle is None:
            return JumpTimes(t, s)
        m = self.middle(t, s, batch, process, generator)
        return JumpTimes(t, s, torch.minimum(torch.maximum(m, s), t))  # rounding may leave the interval


# --- grids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UniformGrid:
    """Equal parts of the time axis; the number of parts may change in training."""

    parts: Varying = 50

    def __call__(self, process: Process, batch: Batch) -> Tensor:
        """parts + 1 times."""
        return torch.linspace(0, process.noisiest, _count(self.parts, batch) + 1, dtype=torch.float64)


@dataclass(frozen=True)
class KarrasGrid:
    """Equal parts of (sigma / alpha)^(1/rho) between two ratios, with the data below: EDM's grid (arXiv 2206.00364)."""

    parts: Varying = 18
    lowest: float = 0.002
    highest: float = 80.0
    rho: float = 7.0

    def __call__(self, process: Process, batch: Batch) -> Tensor:
        """parts + 1 times; fewer where the process has no such ratios."""
        low, high = (ratio ** (1 / self.rho) for ratio in (self.lowest, self.highest))
        ratio = torch.linspace(low, high, _count(self.parts, batch), dtype=torch.float64) ** self.rho
        times = process.time(-ratio.log()).clamp(0, process.noisiest)
        return torch.cat([torch.zeros(1, dtype=torch.float64), times]).unique()


# --- ends and middles -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreviousGridPoint:
    """The point of a grid `skip` points below t, never below s.

    As an end: the lower edge of the segment that t lies in (PCM, MLCM) or the next point (progressive distillation). As
    a middle: the end of the teacher's step (discrete consistency, LCM, CTM).
    """

    grid: TimeGrid
    skip: int = 1

    def __call__(self, t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        """Times (B,)."""
        return torch.maximum(before(self.grid(process, batch), t, self.skip), s)


@dataclass(frozen=True)
class UniformBelow:
    """Uniform between `least` (a fraction of the range) and t: CTM, TCD."""

    least: float = 0.0

    def __call__(self, t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        """Ends (B,)."""
        low = torch.full_like(t, self.least * process.noisiest).minimum(t)
        return low + (t - low) * torch.rand(batch.size, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class SecondDraw:
    """A second draw of a law; the later of the two times is the start (MeanFlow)."""

    law: laws.TimeDistribution

    def __call__(self, t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        """Ends (B,)."""
        return self.law(batch.size, process, generator, None)


@dataclass(frozen=True)
class FractionOfJump:
    """m = share s + (1 - share) t: alpha-Flow (arXiv 2510.20771); 1/2 is the midpoint."""

    share: Varying = 0.5

    def __call__(self, t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        """Middles (B,)."""
        return t + value_at(self.share, batch) * (s - t)


@dataclass(frozen=True)
class ShrinkingStep:
    """r = n (1 - q^-(stage + 1) (1 + k sigmoid(-n))) on the noise ratio n = sigma / alpha: ECT (arXiv 2406.14548).

    stages:
        The stage grows from 0 to `stages` - 1 in equal parts of the training.
    """

    q: float = 2.0
    stages: int = 8
    k: float = 8.0

    def __call__(self, t: Tensor, s: Tensor, batch: Batch, process: Process, generator: torch.Generator) -> Tensor:
        """Middles (B,)."""
        stage = int(batch.step / max(1, batch.steps) * self.stages)
        alpha, sigma = levels(process, t)
        ratio = sigma / alpha.clamp(min=1e-6)
        nearer = ratio * (1 - self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-ratio))).clamp(min=0)
        found = process.time(-nearer.clamp(min=1e-12).log()).minimum(t)
        return torch.maximum(torch.where(nearer > 0, found, torch.zeros_like(t)), s)


# --- whole laws ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomMiddle:
    """One jump from the noisiest time to the data, by way of m uniform in a range of fractions (SlimFlow)."""

    low: float = 0.2
    high: float = 0.8

    def __call__(self, batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        """Times of one batch."""
        t = torch.full((batch.size,), process.noisiest, dtype=torch.float64)
        share = self.low + (self.high - self.low) * torch.rand(batch.size, generator=generator, dtype=torch.float64)
        return JumpTimes(t, torch.zeros_like(t), share * t)


@dataclass(frozen=True)
class DyadicJumps:
    """Jumps of length 2^-k, k uniform in 0..finest-1, from a multiple of it, in two halves: arXiv 2410.12557."""

    finest: int = 7

    def __call__(self, batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        """Times of one batch."""
        count = 2 ** torch.randint(self.finest, (batch.size,), generator=generator)
        which = torch.rand(batch.size, generator=generator, dtype=torch.float64).mul(count).floor()
        t, length = ((which + 1) / count, 1.0 / count.double())
        top = process.noisiest
        return JumpTimes(t * top, (t - length) * top, (t - length / 2) * top)


PAIRS = ("all", "consecutive", "to-end", "whole")


@dataclass(frozen=True)
class StoredPairs:
    """Jumps between stored states: `all` pairs, `consecutive` ones, from any `to-end`, or the `whole` way only.

    keys:
        Times of the states to use, noisiest first, such as those of the student's steps and 0; every one unless given.
    """

    pairs: str = "all"
    keys: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.pairs not in PAIRS:
            raise FewstepError("unknown pairs of stored states", value=self.pairs, hint=nearest(self.pairs, PAIRS))

    def __call__(self, batch: Batch, process: Process, generator: torch.Generator) -> JumpTimes:
        """Times of one batch.

        Raises:
            FewstepError: the batch has no stored times, or none at a key.
        """
        if batch.times is None:
            raise FewstepError("stored pairs need a trajectory store", hint="Make one of the teacher's trajectories.")
        stored = batch.times.double().cpu()
        keys = torch.arange(len(stored)) if self.keys is None else key_positions(stored, self.keys, process)
        start, stop = self._draw(len(keys), batch.size, generator)
        return JumpTimes(stored[keys[start]], stored[keys[stop]], None, keys[start], keys[stop])

    def _draw(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        last = torch.full((size,), count - 1)
        if self.pairs == "whole":
            return torch.zeros_like(last), last
        if self.pairs == "all":
            table = torch.combinations(torch.arange(count))
            chosen = table[torch.randint(len(table), (size,), generator=generator)]
            return chosen[:, 0], chosen[:, 1]
        start = torch.randint(count - 1, (size,), generator=generator)
        return start, start + 1 if self.pairs == "consecutive" else last


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
