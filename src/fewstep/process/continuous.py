"""Processes given by formulas of a continuous time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.process.base import Process
from fewstep.process.time_conditioning import TimeConditioning


@dataclass(frozen=True)
class VPContinuous(Process):
    """Variance preserving with linear beta(t) on t in [0, 1] (arXiv 2011.13456, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    network_scale: float = 999.0
    time_conditioning: str | TimeConditioning | None = None

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
    time_conditioning: str | TimeConditioning | None = None

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
    """Variance exploding: alpha = 1, and time is sigma.

    The network time is log(sigma) / 4 as in EDM (arXiv 2206.00364); networks of score SDEs (arXiv 2011.13456) take
    `time_conditioning="sigma"`.
    """

    noisiest: float = 80.0
    time_conditioning: str | TimeConditioning | None = "c_noise"

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
    time_conditioning: str | TimeConditioning | None = None

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
class ResidualShift(Process):
    """The residual x0 - y of a degraded picture y fades while noise grows (ResShift, arXiv 2403.07319, eq. 2 and 10).

        alpha = 1 - eta, sigma = kappa sqrt(eta);  sqrt(eta) goes from least to most, exponentially in i^power

    Time is the step from 0 (the least noise) to steps - 1, which the network is told, and any number between. The state
    of a picture is x = y + residual: see `fewstep.tasks.restoration.anchored`.

    Args:
        steps: T, of the training (15 and 4 in the paper).
        kappa: strength of the noise.
        power: p, the speed of the shift: larger is more faithful and smoother.
        least_noise: the least sigma; published 0.04 for 15 steps and 0.2 for 4.
        most: sqrt(eta) at the last step; below 1, so that a little of the residual is left.
    """

    steps: int = 15
    kappa: float = 2.0
    power: float = 0.3
    least_noise: float = 0.04
    most: float = 0.99
    time_conditioning: str | TimeConditioning | None = None

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self._least < self.most < 1 or self.kappa <= 0 or self.power <= 0:
            hint = "Use steps of at least 2, positive kappa and power, and least_noise / kappa < most < 1."
            raise FewstepError("no schedule of residual shifting has these numbers", value=repr(self), hint=hint)

    @property
    def noisiest(self) -> float:  # type: ignore[override]
        """The last step."""
        return float(self.steps - 1)

    @property
    def _least(self) -> float:
        return min(self.least_noise / self.kappa, self.least_noise)

    def _root(self, t: Tensor) -> Tensor:
        part = (t / self.noisiest).clamp(min=0) ** self.power
        return self._least * (self.most / self._least) ** part

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - self._root(t).square()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.kappa * self._root(t)

    def _time(self, lam: Tensor) -> Tensor:
        ratio = self.kappa * torch.exp(lam)
        root = 2 / (ratio + (ratio.square() + 4).sqrt())  # of root^2 + ratio root = 1
        part = (root / self._least).log() / math.log(self.most / self._least)
        return part.clamp(min=0) ** (1 / self.power) * self.noisiest


@dataclass(frozen=True)
class General(Process):
    """Any process given by two functions of float64 time tensors; the inverse is found by bisection.

    `lam` must fall strictly on (`cleanest`, `noisiest`).
    """

    alpha_of: Callable[[Tensor], Tensor]
    sigma_of: Callable[[Tensor], Tensor]
    noisiest: float = 1.0
    cleanest: float = 0.0
    time_conditioning: str | TimeConditioning | None = None

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
