"""Repeated draws as a statement of doubt, and whether it is right: how often the truth lies where the draws say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import FewstepError

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def calibration_curve(draws: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """How often (L,) the truth lies in the central interval of each level, over all numbers.

    The truth and n draws of one law come in any order with the same chance, so an interval from the a-th to the b-th
    smallest draw holds it with probability (b - a) / (n + 1). An interval of level q joins two quantiles at
    (1 -+ q) / 2 on that scale, interpolated between draws: exact draws give the curve q -> q for any n, as far as the
    outermost draws reach.

    Args:
        draws: (n, B, ...) for data (B, ...), independent given what was measured.
        truth: (B, ...).
        levels: in (0, (n - 1) / (n + 1)].

    Raises:
        FewstepError: shapes disagree, or a level that so few draws cannot tell.
    """
    if draws.ndim != truth.ndim + 1 or draws.shape[1:] != truth.shape or len(draws) < 2:
        hint = "Stack at least two draws in front."
        raise FewstepError("draws do not fit the truth", value=(tuple(draws.shape), tuple(truth.shape)), hint=hint)
    count = len(draws)
    widest = (count - 1) / (count + 1)
    if not all(0 < level <= widest + 1e-9 for level in levels):
        hint = f"{count} draws tell levels up to {widest:.2f}; draw more."
        raise FewstepError("a level lies outside of what the draws tell", value=tuple(levels), hint=hint)
    ordered, truth = draws.double().sort(0).values, truth.double()
    found = []
    for level in levels:
        low, high = (_quantile(ordered, (1 + sign * level) / 2) for sign in (-1, 1))
        found.append(((truth >= low) & (truth <= high)).double().mean())
    return torch.stack(found)


def calibration_error(draws: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS) -> float:
    """Mean distance of the calibration curve from the diagonal; 0 for draws of the law that the truth has."""
    wanted = torch.tensor(levels, dtype=torch.float64)
    return float((calibration_curve(draws, truth, levels).cpu() - wanted).abs().mean())


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """The value below which a new draw lies with probability p: between order statistics at k / (n + 1)."""
    place = min(max(p * (len(ordered) + 1) - 1, 0.0), len(ordered) - 1.0)
    low = min(int(place), len(ordered) - 2)
    return torch.lerp(ordered[low], ordered[low + 1], place - low)
