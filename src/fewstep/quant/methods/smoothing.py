"""SmoothQuant (arXiv 2211.10438): large input channels are divided down and their weight columns multiplied up."""

from __future__ import annotations

import torch
from torch import Tensor


def divisors(weight: Tensor, largest: Tensor, strength: float = 0.5) -> Tensor:
    """lambda (in,) of eq. 4, max|x_j|^alpha / max|W_j|^(1 - alpha), for weight (out, in, rest); geometric mean 1.

    Channels whose input or weight is zero keep a divisor between those of their neighbours. The geometric mean is
    free (scales absorb it) and 1 keeps float16 products in range.
    """
    inputs = largest.to(weight.device).float()
    columns = weight.abs().amax((0, 2)).float()
    alive = (inputs > 0) & (columns > 0)
    if not bool(alive.any()):
        return torch.ones_like(inputs)
    logs = strength * inputs.clamp(min=1e-30).log() - (1 - strength) * columns.clamp(min=1e-30).log()
    center = logs[alive].mean()
    return torch.where(alive, logs - center, torch.zeros_like(logs)).exp()
