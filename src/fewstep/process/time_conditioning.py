"""The number that stands for a noise level in a network's input: the conventions of the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeConditioning:
    """The network time as a strictly monotone function of `lam`, half the log-SNR; both ways on float64 tensors.

    Args:
        network_time: the number that the network takes, from `lam`.
        lam: its inverse.
    """

    network_time: Callable[[Tensor], Tensor]
    lam: Callable[[Tensor], Tensor]


TIME_CONDITIONINGS = {
    "c_noise": TimeConditioning(lambda lam: -lam / 4, lambda c: -4 * c),
    "sigma": TimeConditioning(lambda lam: torch.exp(-lam), lambda sigma: -sigma.log()),
    "log_sigma": TimeConditioning(lambda lam: -lam, lambda log_sigma: -log_sigma),
    "log_snr": TimeConditioning(lambda lam: 2 * lam, lambda log_snr: log_snr / 2),
    "angle": TimeConditioning(
        lambda lam: torch.exp(-lam).atan() * 2 / math.pi, lambda angle: -(angle * math.pi / 2).tan().log()
    ),
}
"""Conventions by name, with sigma standing for sigma / alpha: EDM's log(sigma) / 4 (arXiv 2206.00364, table 1), sigma
(score SDEs, arXiv 2011.13456) and its logarithm, log(alpha^2 / sigma^2) (arXiv 2107.00630), and atan(sigma) 2 / pi
(Stable Audio)."""
