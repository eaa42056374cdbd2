"""Optimizers by name, and what they keep in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fewstep.errors import FewstepError, nearest

BYTES = {"adamw": 8.0, "adamw8bit": 2.1}
"""Bytes of moments per parameter; the 8-bit kind keeps one scale per block of 256."""


def optimizer_of(
    kind: str, parameters: Iterable[nn.Parameter], learning_rate: float, betas: tuple[float, float], decay: float
) -> torch.optim.Optimizer:
    """AdamW over these parameters.

    Raises:
        FewstepError: unknown kind.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=decay, fused=True)
    if kind == "adamw8bit":
        from torchao.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(
            list(parameters), lr=learning_rate, betas=betas, weight_decay=decay, block_size=256
        )
        return optimizer
    raise FewstepError("unknown optimizer", value=kind, hint=nearest(kind, BYTES))
