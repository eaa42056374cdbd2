"""Rewards of one group against each other, for policy gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, floor: float = 0.0, most: float = float("inf")) -> Tensor:
    """(r - mean) / (std + floor) within +-most, of rewards (G, ...) whose first dimension is a group.

    A group of equal rewards has none.
    """
    spread = rewards.std(0, correction=0) + floor
    return ((rewards - rewards.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))).clamp(-most, most)
