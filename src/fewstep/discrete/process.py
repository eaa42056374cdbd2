"""Masked diffusion: each token is kept or replaced by the mask, independently of the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest

SCHEDULES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log-linear": (lambda t: 1 - t, lambda t: -torch.ones_like(t)),
    "cosine": (lambda t: torch.cos(t * math.pi / 2), lambda t: -math.pi / 2 * torch.sin(t * math.pi / 2)),
}
"""Name -> (alpha, its derivative), on [0, 1], before `least`."""


@dataclass(frozen=True)
class MaskedDiffusion:
    """q(z_t | x): each token is kept with probability alpha_t, else replaced by the mask (MDLM, arXiv 2406.07524).

    Attributes:
        tokens: how many symbols the network has logits for, the mask among them.
        mask: number of the mask.
        schedule: `log-linear`, alpha_t = 1 - t, or `cosine`; both from 1 at t = 0 to `least` at t = 1.
        least: alpha at t = 1.

    Raises:
        FewstepError: a mask that is no symbol, an unknown schedule, or `least` outside of [0, 1).
    """

    tokens: int
    mask: int
    schedule: str = "log-linear"
    least: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.mask < self.tokens:
            raise FewstepError(f"the mask must be one of {self.tokens} symbols", value=self.mask, hint="0 ... tokens-1")
        if self.schedule not in SCHEDULES:
            hint = nearest(self.schedule, SCHEDULES)
            raise FewstepError("unknown schedule of masks", value=self.schedule, hint=hint)
        if not 0 <= self.least < 1:
            raise FewstepError("the share of tokens kept at t = 1 must lie in [0, 1)", value=self.least)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Probability that a token is kept at times t in [0, 1]; float64, of the shape of t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.least + (1 - self.least) * SCHEDULES[self.schedule][0](t)

    def slope(self, t: Tensor | float) -> Tensor:
        """d alpha / dt, likewise."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return (1 - self.least) * SCHEDULES[self.schedule][1](t)

    def add_noise(self, x: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
        """Tokens z_t (B, L) for tokens x (B, L) at times t (B,) and uniform numbers (B, L)."""
        kept = uniform < self.alpha(t).to(uniform)[:, None]
        return torch.where(kept, x, self.mask)
