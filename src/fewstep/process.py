"""How data becomes noise: `x_t = alpha(t) x_0 + sigma(t) eps`, for every process of the field.

Conventions. Time rises from data to noise. `lam = log(alpha / sigma)` is half the log signal-to-noise ratio and
falls with time. Every method takes a float (and returns one) or a float64 tensor of any shape (and returns one of that
shape, differentiable). No network and no device live here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.network_time import NETWORK_TIMES, NetworkTime

Real = TypeVar("Real", float, Tensor)


def lift(function: Callable[[Tensor], Tensor], value: Real) -> Real:
    """Apply a float64 tensor function to a float or a tensor; a float comes back as a float."""
    if isinstance(value, Tensor):
        return function(value.double())
    return float(function(torch.tensor(value, dtype=torch.float64)))


class Process(ABC):
    """A noising process; subclasses give `_alpha`, `_sigma` and the inverse `_time` on float64 tensors."""

    noisiest: float = 1.0
    """Time of the prior."""
    cleanest: float = 0.0
    """Least time."""
    told: str | NetworkTime | None = None
    """What the network is told of a time: a name of `NETWORK_TIMES`, a pair of functions, or None for what is usual
    with the process."""

    @property
    def endless(self) -> bool:
        """Whether noise has no upper end (VE): times are then compared by their ratio, not by their difference."""
        return self.alpha(self.noisiest) == 1

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, lam: Tensor) -> Tensor: ...

    def _lam(self, t: Tensor) -> Tensor:
        return self._alpha(t).log() - self._sigma(t).log()

    def _network_time(self, t: Tensor) -> Tensor:
        return t

    def _from_network_time(self, time: Tensor) -> Tensor:
        return time

    def alpha(self, t: Real) -> Real:
        """Signal scale at time `t`."""
        return lift(self._alpha, t)

    def sigma(self, t: Real) -> Real:
        """Noise scale at time `t`."""
        return lift(self._sigma, t)

    def lam(self, t: Real) -> Real:
        """Half log signal-to-noise ratio at time `t`."""
        return lift(self._lam, t)

    def time(self, lam: Real) -> Real:
        """Time at which the half log signal-to-noise ratio is `lam` (inverse of `lam`)."""
        return lift(self._time, lam)

    def network_time(self, t: Real) -> Real:
        """The number that the network is told at process time `t`."""
        clock = self._clock
        return lift(self._network_time if clock is None else lambda t: clock.tell(self._lam(t)), t)

    def from_network_time(self, time: Real) -> Real:
        """Process time of the number that the network is told (inverse of `network_time`)."""
        clock = self._clock
        return lift(self._from_network_time if clock is None else lambda told: self._time(clock.lam(told)), time)

    @property
    def _clock(self) -> NetworkTime | None:
        """The convention of `told`."""
        if self.told is None or isinstance(self.told, NetworkTime):
            return self.told
        if self.told not in NETWORK_TIMES:
            hint = nearest(str(self.told), NETWORK_TIMES)
            raise FewstepError("unknown convention of the network's time", value=self.told, hint=hint)
        return NETWORK_TIMES[self.told]

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times () or (B,), in the dtype of states x (B, ...) and shaped to multiply them."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self._alpha(t.double()).to(x).reshape(shape), self._sigma(t.double()).to(x).reshape(shape)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy states alpha x0 + sigma eps (B, ...) for clean data and noise of that shape at times (B,)."""
        alpha, sigma = self.scales(t, clean)
        return alpha * clean + sigma * noise


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

    Time is the (fractional) step index in [0, T - 1], which is also what the network is told. A last entry of zero
    (zero terminal signal) is allowed; alpha is linear over that last interval.
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    told: str | NetworkTime | None = None

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

    def _log_alpha(self, t: Tensor) -> Tensor:
        table = self._log_alphas
        low = t.detach().floor().clamp(0, len(table) - 2).long()
        part = t - low
        left, right = table[low], table[low + 1]
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
        straight = (log_alpha - left) / (right.nan_to_num(neginf=0.0) - left)
        return low + torch.where(right.isinf(), -torch.expm1(log_alpha - left), straight)


@dataclass(frozen=True)
class VPContinuous(Process):
    """Variance preserving with linear beta(t) on t in [0, 1] (arXiv 2011.13456, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    network_scale: float = 999.0
    told: str | NetworkTime | None = None

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _time(self, lam: Tensor) -> Tensor:
        spread = self.beta_max - self.beta_min
        load = 2 * spread * torch.nn.functional.softplus(-2 * lam)
        return load / (spread * ((self.beta_min**2 + load).sqrt() + self.beta_min))

    def _network_time(self, t: Tensor) -> Tensor:
        return self.network_scale * t

    def _from_network_time(self, time: Tensor) -> Tensor:
        return time / self.network_scale


@dataclass(frozen=True)
class Cosine(Process):
    """Variance preserving with a cosine alpha on t in [0, 1] (arXiv 2102.09672, eq. 17); offset 0: plain angle."""

    offset: float = 0.008
    network_scale: float = 1000.0
    told: str | NetworkTime | None = None

    @property
    def _least(self) -> float:
        """The angle at time 0."""
        return self.offset / (1 + self.offset) * math.pi / 2

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.offset) / (1 + self.offset) * math.pi / 2

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)) / math.cos(self._least)

    def _sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha^2 as a product: the difference would lose its digits near t = 0
        angle = self._angle(t)
        product = torch.sin(math.pi / 2 * t / (1 + self.offset)) * torch.sin(angle + self._least)
        return product.clamp(min=0).sqrt() / math.cos(self._least)

    def _time(self, lam: Tensor) -> Tensor:
        alpha, variance = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam)
        sine = (math.sin(self._least) ** 2 + math.cos(self._least) ** 2 * variance).sqrt()
        angle = torch.atan2(sine, math.cos(self._least) * alpha)
        return angle * 2 / math.pi * (1 + self.offset) - self.offset

    def _network_time(self, t: Tensor) -> Tensor:
        return self.network_scale * t

    def _from_network_time(self, time: Tensor) -> Tensor:
        return time / self.network_scale


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, time is sigma; unless `told` says otherwise, the network is told log(sigma) / 4.

    EDM (arXiv 2206.00364) is told so; networks of score SDEs (arXiv 2011.13456) take `told="sigma"`.
    """

    noisiest: float = 80.0
    told: str | NetworkTime | None = "c_noise"

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight path alpha = 1 - sigma; sigma = shift t / (1 + (shift - 1) t) (arXiv 2403.03206)."""

    shift: float = 1.0
    network_scale: float = 1000.0
    told: str | NetworkTime | None = None

    def _sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def _time(self, lam: Tensor) -> Tensor:
        return self._at_sigma(torch.sigmoid(-lam))

    def _at_sigma(self, sigma: Tensor) -> Tensor:
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def _network_time(self, t: Tensor) -> Tensor:
        return self.network_scale * self._sigma(t)

    def _from_network_time(self, time: Tensor) -> Tensor:
        return self._at_sigma(time / self.network_scale)


@dataclass(frozen=True)
class General(Process):
    """Any process given by two functions of float64 time tensors; the inverse is found by bisection.

    `lam` must fall strictly on (`cleanest`, `noisiest`).
    """

    alpha_of: Callable[[Tensor], Tensor]
    sigma_of: Callable[[Tensor], Tensor]
    noisiest: float = 1.0
    cleanest: float = 0.0
    told: str | NetworkTime | None = None

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alpha_of(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_of(t)

    def _time(self, lam: Tensor) -> Tensor:
        low = torch.full_like(lam, self.cleanest)
        high = torch.full_like(lam, self.noisiest)
        for _ in range(100):  # halves the bracket to the last bit of float64
            middle = (low + high) / 2
            cleaner = self._lam(middle) > lam
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return (low + high) / 2
