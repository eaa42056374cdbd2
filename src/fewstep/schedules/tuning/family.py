"""Families of Q-Sched coefficients: how few numbers describe the two scalars of every step (arXiv 2509.01624)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.plan import Plan

NAMES = ("ramp-to-one", "ramp", "free", "per-channel")


@dataclass(frozen=True)
class Family:
    """A parameterisation of (sample_scale, output_scale) and its search box; all ones is the identity in each.

    Attributes:
        name: `ramp-to-one` (2 numbers): linear from (s0, m0) at the noisiest step to 1 at the last, the released
            search. `ramp` (4): linear from (s0, m0) to (s1, m1), what the released evaluation accepts. `free` (2K):
            every step its own pair. `per-channel` (K + K C): every step a sample scale and one output scale per latent
            channel.

    low, high: the box, the same for every number.
    channels: latent channels C, which `per-channel` needs; states must be (B, C, H, W).

    Raises:
        FewstepError: an unknown name, a box without 1, or no channels where they are needed.
    """

    name: str = "ramp"
    low: float = 0.8
    high: float = 1.2
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise FewstepError("unknown coefficient family", value=self.name, hint=nearest(self.name, NAMES))
        if not self.low < 1.0 < self.high:
            raise FewstepError("the search box must contain 1", value=(self.low, self.high))
        if self.name == "per-channel" and (self.channels is None or self.channels < 1):
            hint = "Pass channels=, those of the network's states (4 for Stable Diffusion)."
            raise FewstepError("per-channel coefficients need the number of channels", value=self.channels, hint=hint)

    @property
    def _each(self) -> int:
        """Output scales per step."""
        return self.channels or 1

    def size(self, steps: int) -> int:
        """How many numbers describe a plan of this many steps."""
        sizes = {"ramp-to-one": 2, "ramp": 4, "free": 2 * steps, "per-channel": steps * (1 + self._each)}
        return sizes[self.name]

    def identity(self, steps: int) -> Tensor:
        """The numbers that change nothing, shape (size,), float64."""
        return torch.ones(self.size(steps), dtype=torch.float64)

    def expand(self, theta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """(sample_scale (K,), output_scale (K,) or (K, C, 1, 1)) from theta (size,); differentiable."""
        if theta.shape != (self.size(steps),):
            what = f"the family {self.name!r} takes {self.size(steps)} numbers at {steps} steps"
            raise FewstepError(what, value=tuple(theta.shape))
        if self.name == "ramp-to-one":
            one = torch.ones_like(theta[0])
            return _line(theta[0], one, steps), _line(theta[1], one, steps)
        if self.name == "ramp":
            return _line(theta[0], theta[1], steps), _line(theta[2], theta[3], steps)
        if self.name == "free":
            return theta[:steps], theta[steps:]
        return theta[:steps], theta[steps:].reshape(steps, self._each, 1, 1)

    def from_ramp(self, corner: Tensor, steps: int) -> Tensor:
        """The member equal to the ramp to one from (s0, m0), shape (2,): where wider searches start."""
        if self.name == "ramp-to-one":
            return corner
        if self.name == "ramp":
            one = torch.ones_like(corner[0])
            return torch.stack([corner[0], one, corner[1], one])
        s, m = Family("ramp-to-one", self.low, self.high).expand(corner, steps)
        return torch.cat([s, m if self.name == "free" else m.repeat_interleave(self._each)])

    def apply(self, plan: Plan, theta: Tensor) -> Plan:
        """The plan with the coefficients of theta folded in; the identity returns the plan itself."""
        if not theta.requires_grad and bool((theta == 1).all()):
            return plan
        return plan.scaled(*self.expand(theta, plan.steps))

    def on_boundary(self, theta: Tensor, tolerance: float = 1e-3) -> bool:
        """Whether any number lies on the edge of the box: then the box, not the objective, chose it."""
        reach = (self.high - self.low) * tolerance
        return bool(((theta - self.low < reach) | (self.high - theta < reach)).any())


def _line(first: Tensor, last: Tensor, steps: int) -> Tensor:
    return first + (last - first) * torch.linspace(0, 1, steps, dtype=first.dtype)
