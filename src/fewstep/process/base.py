"""How data becomes noise: `x_t = alpha(t) x_0 + sigma(t) eps`, for every process of the field.

Conventions. Time rises from data to noise. `lam = log(alpha / sigma)` is half the log signal-to-noise ratio and
falls with time. Every method takes a float (and returns one) or a float64 tensor of any shape (and returns one of that
shape, differentiable). No network and no device live here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.process.time_conditioning import TIME_CONDITIONINGS, TimeConditioning

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
    time_conditioning: str | TimeConditioning | None = None
    """The number by which the network is given a time: a name of `TIME_CONDITIONINGS`, a pair of functions, or None for
    the usual one of the process."""

    @property
    def unbounded(self) -> bool:
        """Whether sigma has no upper bound (VE): times are then compared by their ratio, not by their difference."""
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
        """The number that the network takes for process time `t`."""
        given = self._conditioning
        return lift(self._network_time if given is None else lambda t: given.network_time(self._lam(t)), t)

    def from_network_time(self, time: Real) -> Real:
        """Process time of a network time (inverse of `network_time`)."""
        given = self._conditioning
        return lift(self._from_network_time if given is None else lambda time: self._time(given.lam(time)), time)

    def angle(self, t: Real) -> Real:
        """atan(sigma / alpha) at time `t`: 0 for data, pi / 2 for noise, whatever the process."""
        return lift(lambda t: torch.atan2(self._sigma(t), self._alpha(t)), t)

    def time_of_angle(self, phi: Real) -> Real:
        """Time of an angle (inverse of `angle`); those of no noise and beyond the noisiest are the ends."""
        return lift(self._time_of_angle, phi)

    def _time_of_angle(self, phi: Tensor) -> Tensor:
        top = torch.tensor(self.noisiest, dtype=torch.float64)
        inside = (phi > 0) & (phi < self.angle(top))
        middle = self._time(-torch.where(inside, phi, torch.full_like(phi, 0.5)).tan().log()).clamp(0, self.noisiest)
        return torch.where(inside, middle, torch.where(phi > 0, top, torch.zeros_like(phi)))

    @property
    def _conditioning(self) -> TimeConditioning | None:
        """The pair of functions of `time_conditioning`; None for the usual one."""
        named = self.time_conditioning
        if named is None or isinstance(named, TimeConditioning):
            return named
        if named not in TIME_CONDITIONINGS:
            hint = nearest(str(named), TIME_CONDITIONINGS)
            raise FewstepError("unknown time conditioning of the network", value=named, hint=hint)
        return TIME_CONDITIONINGS[named]

    def scales(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times () or (B,), in the dtype of states x (B, ...) and shaped to multiply them."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self._alpha(t.double()).to(x).reshape(shape), self._sigma(t.double()).to(x).reshape(shape)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Noisy states alpha x0 + sigma eps (B, ...) for clean data and noise of that shape at times (B,)."""
        alpha, sigma = self.scales(t, clean)
        return alpha * clean + sigma * noise
