"""Time grids: at which times a plan asks the network, and where it ends. Values, independent of every solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.process import Process, VPDiscrete

CLEAN = None
"""End at the data itself: alpha 1, sigma 0."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Falling times (K,) in float64, and the time the last row ends at (`CLEAN`: alpha 1, sigma 0; never inferred).

    Raises:
        PlanError: the times are empty or do not fall strictly.
    """

    times: Tensor
    end: float | None = CLEAN

    def __post_init__(self) -> None:
        falling = self.times.numel() > 0 and bool((self.times.diff() < 0).all())
        if not falling or (self.end is not None and float(self.times[-1].detach()) <= self.end):
            raise PlanError(
                "a time grid must fall strictly to its end",
                value=[round(float(t), 4) for t in self.times],
                mend="Use fewer steps, or remove duplicate times.",
            )

    def __len__(self) -> int:
        return self.times.numel()


def given(times: Sequence[float], end: float | None = CLEAN) -> Grid:
    """Exactly these times."""
    return Grid(torch.as_tensor(list(times), dtype=torch.float64), end)


def uniform(process: Process, steps: int, end: float | None = CLEAN, last: float | None = None) -> Grid:
    """Equal steps in time from the noisiest; the last call is at `last`, or one step before time 0."""
    _at_least_one(steps)
    if last is None:
        last = process.noisiest / steps
    return Grid(torch.linspace(process.noisiest, last, steps, dtype=torch.float64), end)


def uniform_lambda(process: Process, steps: int, last: float, end: float | None = CLEAN) -> Grid:
    """Equal steps in half log-SNR from the noisiest time to time `last` (both calls included)."""
    _at_least_one(steps)
    ends = process.lam(torch.tensor([process.noisiest, last], dtype=torch.float64))
    lam = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, steps, dtype=torch.float64)
    times = process.time(lam)
    return Grid(torch.cat([torch.tensor([process.noisiest], dtype=torch.float64), times[1:]]), end)


def karras(process: Process, steps: int, last: float, rho: float = 7.0, end: float | None = CLEAN) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) down to time `last` (arXiv 2206.00364, eq. 5), mapped to float times."""
    _at_least_one(steps)
    ratio = torch.exp(-process.lam(torch.tensor([process.noisiest, last], dtype=torch.float64)))
    root = ratio ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (root[0] + ramp * (root[1] - root[0])) ** rho
    return Grid(process.time(-levels.log()), end)


def trailing(process: VPDiscrete, steps: int, end: float | None = CLEAN) -> Grid:
    """diffusers' `trailing` spacing: from the last index down, never the first (arXiv 2305.08891)."""
    total = _total(process, steps)
    return Grid(torch.arange(total, 0, -total / steps, dtype=torch.float64)[:steps].round() - 1, end)


def leading(process: VPDiscrete, steps: int, offset: int = 0, end: float | None = CLEAN) -> Grid:
    """diffusers' `leading` spacing with `steps_offset`: from below the last index down to the first."""
    total = _total(process, steps)
    return Grid((torch.arange(steps).flip(0) * (total // steps) + offset).double(), end)


def linspace(process: VPDiscrete, steps: int, end: float | None = CLEAN) -> Grid:
    """diffusers' `linspace` spacing with both ends, rounded."""
    total = _total(process, steps)
    return Grid(torch.linspace(0, total - 1, steps, dtype=torch.float64).round().flip(0), end)


def distilled(process: VPDiscrete, steps: int, original: int = 50, end: float | None = CLEAN) -> Grid:
    """The grid of LCM and TCD students: `steps` of the `original` times that the student was distilled on."""
    total = _total(process, steps)
    if steps > original:
        raise PlanError(f"steps must not exceed the {original} distilled times", value=steps, mend="Use fewer steps.")
    stride = total // original
    taught = (torch.arange(1, original + 1) * stride - 1).flip(0)
    picks = torch.linspace(0, original, steps + 1, dtype=torch.float64)[:-1].floor().long()
    return Grid(taught[picks].double(), end)


def _total(process: VPDiscrete, steps: int) -> int:
    _at_least_one(steps)
    if not isinstance(process, VPDiscrete):
        raise PlanError(
            "this grid counts the steps of a discrete process",
            value=type(process).__name__,
            mend="Use `uniform` or `karras`.",
        )
    total = len(process.alphas_cumprod)
    if steps > total:
        raise PlanError(f"the process has {total} times", value=steps, mend="Use fewer steps.")
    return total


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise PlanError("steps must be at least 1", value=steps, mend="Pass steps=4, for instance.")
