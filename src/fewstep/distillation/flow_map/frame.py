"""Coefficients of a jump from t to s: what a clean prediction means as a state, as a velocity, and back.

With D the clean prediction at (x, t), the state at s is `keep x + gain D` (the step with D held fixed) and the velocity
at t is `drift x + pace D`. All are linear in D, so a difference of predictions can be read in any space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.process import Process

Space = Literal["clean", "state", "velocity"]
"""What a residual is a difference of; on the straight path, state = (t - s) velocity and clean = t velocity."""


def column(values: Tensor, like: Tensor) -> Tensor:
    """Numbers per sample (B,) in the dtype of `like` (B, ...) and shaped to multiply it."""
    return values.to(like).reshape((-1,) + (1,) * (like.ndim - 1))


def rates(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of alpha and sigma at times (B,), in float64."""
    with torch.enable_grad():
        point = t.detach().double().requires_grad_()
        # a constant alpha (VE) has no graph of its own
        sums = [(f(point) + 0.0 * point).sum() for f in (process.alpha, process.sigma)]
        alpha, sigma = (torch.autograd.grad(total, point)[0] for total in sums)
        return alpha, sigma


def levels(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at times (B,), float64; time 0 is the data, also where the process keeps some noise there."""
    clean = t == 0
    alpha, sigma = process.alpha(t.double()), process.sigma(t.double())
    return torch.where(clean, torch.ones_like(alpha), alpha), torch.where(clean, torch.zeros_like(sigma), sigma)


BoundaryScaling = Callable[[Process, Tensor], tuple[Tensor, Tensor]]
"""(process, times (B,)) -> c_skip and c_out (B,) of an end map f = c_skip x + c_out D."""


def lcm_boundary(process: Process, t: Tensor, scaling: float = 10.0, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """The end map of latent consistency models, the identity at time 0 by construction.

    c_skip = d^2 / ((k tau)^2 + d^2), c_out = k tau / sqrt((k tau)^2 + d^2), tau the network time, d = `sigma_data`,
    k = `scaling` (arXiv 2310.04378, eq. 9 as in diffusers' LCMScheduler).
    """
    scaled = scaling * process.network_time(t.double())
    square = scaled**2 + sigma_data**2
    return sigma_data**2 / square, scaled / square.sqrt()


@dataclass(frozen=True)
class JumpCoefficients:
    """The coefficients (B,) of jumps from t to s, in float64; those of the velocity are computed when asked for."""

    keep: Tensor
    gain: Tensor
    process: Process
    t: Tensor

    @classmethod
    def of(cls, process: Process, t: Tensor, s: Tensor, boundary: BoundaryScaling | None = None) -> JumpCoefficients:
        """Coefficients for times (B,).

        Raises:
            FewstepError: a jump starts at a time without noise, or a boundary was asked for a jump that does not end
                at time 0.
        """
        t, s = t.double(), s.double()
        alpha, sigma = levels(process, t)
        if bool((sigma <= 0).any()):
            raise FewstepError("a jump must start at a noisy time", value=float(t.min()), hint="Draw larger times.")
        alpha_end, sigma_end = levels(process, s)
        keep = sigma_end / sigma
        gain = alpha_end - alpha * keep
        if boundary is not None:
            if bool((s != 0).any()):
                hint = "Use no boundary, or jumps to time 0."
                raise FewstepError("this boundary belongs to jumps to time 0", value=float(s.max()), hint=hint)
            keep, gain = boundary(process, t)
        return cls(keep, gain, process, t)

    @cached_property
    def _velocity(self) -> tuple[Tensor, Tensor]:
        alpha, sigma = levels(self.process, self.t)
        alpha_rate, sigma_rate = rates(self.process, self.t)
        drift = sigma_rate / sigma
        return drift, alpha_rate - alpha * drift

    @property
    def drift(self) -> Tensor:
        """Factor (B,) of the state in the velocity at t."""
        return self._velocity[0]

    @property
    def pace(self) -> Tensor:
        """Factor (B,) of the clean prediction in the velocity at t; -1 / t on the straight path."""
        return self._velocity[1]

    def scale(self, space: Space) -> Tensor:
        """Derivative (B,) of the value in a space with respect to D."""
        if space == "velocity":
            return self.pace
        return self.gain if space == "state" else torch.ones_like(self.gain)

    def express(self, clean: Tensor, x: Tensor, space: Space) -> Tensor:
        """A clean prediction (B, ...) at states x (B, ...) as a value of another space."""
        if space == "clean":
            return clean
        offset = self.keep if space == "state" else self.drift
        return column(offset, x) * x + column(self.scale(space), x) * clean

    def transfer(self, value: Tensor, clean: Tensor, x: Tensor, source: Space, to: Space) -> Tensor:
        """A value of one space in another; `clean` is any prediction near it.

        Only the difference from that of `clean` is rescaled, so that a short jump (gain near 0) loses no digits beyond
        those of the difference; where the two spaces have no relation (gain 0) the value is that of `clean`.
        """
        if source == to:
            return value
        ratio = self.scale(to) / self.scale(source)
        ratio = torch.where(self.scale(source) == 0, torch.zeros_like(ratio), ratio)
        return self.express(clean, x, to) + column(ratio, x) * (value - self.express(clean, x, source))
