"""What a network is told of a noise level: the conventions of the field, as functions of half the log-SNR."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NetworkTime:
    """What a network is told as a function of `lam`, and the inverse; strictly monotone, on float64 tensors."""

    tell: Callable[[Tensor], Tensor]
    lam: Callable[[Tensor], Tensor]


NETWORK_TIMES = {
    "c_noise": NetworkTime(lambda lam: -lam / 4, lambda told: -4 * told),
    "sigma": NetworkTime(lambda lam: torch.exp(-lam), lambda told: -told.log()),
    "log_sigma": NetworkTime(lambda lam: -lam, lambda told: -told),
    "log_snr": NetworkTime(lambda lam: 2 * lam, lambda told: told / 2),
    "angle": NetworkTime(
        lambda lam: torch.exp(-lam).atan() * 2 / math.pi, lambda told: -(told * math.pi / 2).tan().log()
    ),
}
"""Conventions by name, with sigma standing for sigma / alpha: EDM's log(sigma) / 4 (arXiv 2206.00364, table 1), sigma
(score SDEs, arXiv 2011.13456) and its logarithm, log(alpha^2 / sigma^2) (arXiv 2107.00630), and atan(sigma) 2 / pi
(Stable Audio)."""
