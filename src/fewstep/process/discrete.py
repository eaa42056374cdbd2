"""Processes on a table of steps, and the beta schedules that fill it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.process.base import Process
from fewstep.process.time_conditioning import TimeConditioning


def betas(schedule: str, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The beta schedules of diffusers in float64: `linear`, `scaled_linear`, `squaredcos_cap_v2`; shape (steps,)."""
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    if schedule == "squaredcos_cap_v2":
        edge = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((edge + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    known = ("linear", "scaled_linear", "squaredcos_cap_v2")
    raise FewstepError("unknown beta schedule", value=schedule, hint=nearest(schedule, known))


@dataclass(frozen=True)
class VPDiscrete(Process):
    """Variance preserving on a table of cumulative alphas; log alpha is piecewise linear in the step index.

    Time is the (fractional) step index in [0, T - 1], which is also the usual network time. A last entry of zero
    (zero terminal signal) is allowed; alpha is linear over that last interval.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    time_conditioning: str | TimeConditioning | None = None

    def __post_init__(self) -> None:
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if len(table) < 2 or not bool(((table >= 0) & (table <= 1)).all()) or bool((table.diff() >= 0).any()):
            raise FewstepError(
                "alphas_cumprod must fall strictly within [0, 1]",
                hint="Check the beta schedule it came from.",
            )

    @classmethod
    def from_betas(cls, schedule: str = "scaled_linear", steps: int = 1000, **ends: float) -> VPDiscrete:
        """From a named beta schedule, in float64 (diffusers: float32, relative 1e-5 off at the end)."""
        bar = torch.cumprod(1 - betas(schedule, steps, **ends), 0)
        return cls(tuple(bar.tolist()))

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> VPDiscrete:
        """From the very table of a diffusers scheduler, for parity to the last digit.

        Raises:
            FewstepError: the scheduler holds no `alphas_cumprod` (a flow or EDM scheduler).
        """
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            raise FewstepError(
                f"{type(scheduler).__name__} has no alphas_cumprod",
                hint="Use RectifiedFlow or VE for flow and EDM schedulers.",
            )
        return cls(tuple(table.double().tolist()))

    @property
    def noisiest(self) -> float:  # type: ignore[override]
        """Index of the last step."""
        return float(len(self.alphas_cumprod) - 1)

    @cached_property
    def _log_alphas(self) -> Tensor:
        return 0.5 * torch.tensor(self.alphas_cumprod, dtype=torch.float64).log()

    @property
    def _ends_without_signal(self) -> bool:
        return self.alphas_cumprod[-1] == 0

    def _log_alpha(self, t: Tensor) -> Tensor:
        table = self._log_alphas
        low = t.detach().floor().clamp(0, len(table) - 2).long()
        part = t - low
        left, right = table[low], table[low + 1]
        if not self._ends_without_signal:
            return left + part * (right - left)
        straight = left + part * (right.nan_to_num(neginf=0.0) - left)
        # the last interval of a zero-terminal-signal table ends at log 0: linear in alpha instead; elsewhere the
        # logarithm is kept from 1 - part = 0, whose infinite slope would spoil the gradient of the other branch
        linear = left + torch.log1p(-torch.where(right.isinf(), part, 0.0))
        return torch.where(right.isinf(), linear, straight)

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _time(self, lam: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam)
        table = self._log_alphas
        low = (torch.searchsorted(-table, -log_alpha.detach().contiguous()) - 1).clamp(0, len(table) - 2)
        left, right = table[low], table[low + 1]
        if not self._ends_without_signal:
            return low + (log_alpha - left) / (right - left)
        straight = (log_alpha - left) / (right.nan_to_num(neginf=0.0) - left)
        return low + torch.where(right.isinf(), -torch.expm1(log_alpha - left), straight)
