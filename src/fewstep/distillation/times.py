"""Laws of random process times: what noise levels an objective looks at.

A law is called with (size, process, generator, samples) and returns times (size,) in float64 on the CPU, within the
process. `samples` are the student's, for the laws that depend on its last call; the others take None.
Laws on a fraction of the range [0, noisiest] may be shifted: u -> S u / (1 + (S - 1) u) (arXiv 2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Samples
from fewstep.errors import FewstepError
from fewstep.process import Process

TimeDistribution = Callable[[int, Process, torch.Generator, Samples | None], Tensor]
"""(number of samples, process, generator, the student's samples if there are any) -> one time per sample."""


@dataclass(frozen=True)
class Uniform:
    """Uniform between two fractions of the range; DMD has [0.02, 0.98] (arXiv 2311.18828)."""

    low: float = 0.02
    high: float = 0.98
    shift: float = 1.0

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        u = self.low + (self.high - self.low) * _uniform(size, generator)
        return process.noisiest * shifted_fraction(u, self.shift)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) normal, clamped to [least, noisiest]; EDM has (-1.2, 1.2) (arXiv 2206.00364, table 1)."""

    mean: float = -1.2
    std: float = 1.2
    least: float = 2.5e-5

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        return _clamped(process, process.time(-(self.mean + self.std * noise)), self.least)


@dataclass(frozen=True)
class KarrasTime:
    """sigma / alpha on the curve of EDM's grid at u uniform in [bottom, top]: SiD's law (arXiv 2404.04057)."""

    top: float = 0.8
    bottom: float = 0.0
    rho: float = 7.0
    lowest: float = 0.002
    highest: float = 80.0
    least: float = 0.0

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        low, high = self.lowest ** (1 / self.rho), self.highest ** (1 / self.rho)
        u = self.bottom + (self.top - self.bottom) * _uniform(size, generator)
        ratio = (low + u * (high - low)) ** self.rho
        return _clamped(process, process.time(-ratio.log()), self.least)


@dataclass(frozen=True)
class LogitNormal:
    """Fraction of the range sigmoid(mean + std n); few-step SiD has (log 2, 1.6) (arXiv 2509.25127)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    least: float = 1e-3

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        u = shifted_fraction((self.mean + self.std * noise).sigmoid(), self.shift)
        return _clamped(process, process.noisiest * u, self.least)


@dataclass(frozen=True)
class Beta:
    """Fraction of the range with density Beta(a, b); (1, 1) is uniform."""

    a: float = 1.0
    b: float = 1.0
    least: float = 1e-3

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        from scipy.special import betaincinv

        u = torch.from_numpy(betaincinv(self.a, self.b, _uniform(size, generator).numpy()))
        return _clamped(process, process.noisiest * u, self.least)


def annealed_beta(
    step: int, steps: int = 10_000, start: tuple[float, float] = (4.0, 1.5), end: tuple[float, float] = (1.0, 1.0)
) -> Beta:
    """The Beta law of a training step: a cosine from `start` (mostly noisy) to `end` (DMDR, arXiv 2511.13649)."""
    rest = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    a, b = (last + rest * (first - last) for first, last in zip(start, end, strict=True))
    return Beta(a, b)


@dataclass(frozen=True)
class LastInterval:
    """Uniform on the interval of the student's last call, from its end to its start: TDM (arXiv 2503.06674).

    least, margin:
        Fractions of the range (see `part_of`): never below `least`, and so much below the start of the interval.
    whole:
        Up to the noisiest time instead of the start (TDM's overlapping variant).
    """

    least: float = 0.02
    margin: float = 0.01
    whole: bool = False

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        samples = _needed(samples, process)
        high = torch.ones_like(samples.time) if self.whole else part_of(process, samples.time)
        low = part_of(process, samples.next_time).clamp(min=self.least)
        high = torch.maximum(high - self.margin, low)
        return time_at(process, low + (high - low) * _uniform(size, generator))


@dataclass(frozen=True)
class BelowLastCall:
    """Uniform below the time of the student's last call: the guidance branch of Decoupled DMD (arXiv 2511.22677).

    A process with a shift keeps its time before the shift, as the authors draw it; `shift` is for schedules that shift
    on top: the bounds are then taken before it.
    """

    least: float = 0.02
    shift: float = 1.0

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        samples = _needed(samples, process)
        low = shifted_fraction(torch.tensor(self.least, dtype=torch.float64), 1 / self.shift)
        high = torch.maximum(shifted_fraction(part_of(process, samples.time), 1 / self.shift), low)
        return time_at(process, shifted_fraction(low + (high - low) * _uniform(size, generator), self.shift))


@dataclass(frozen=True)
class FixedTimes:
    """One of the given process times, all equally likely; DMD2 has the whole numbers 20..980 (arXiv 2405.14867)."""

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times:
            raise FewstepError("a grid of times is empty", hint="Give one time at least.")

    def __call__(
        self, size: int, process: Process, generator: torch.Generator, samples: Samples | None = None
    ) -> Tensor:
        """Times (size,)."""
        within(process, self.times)
        chosen = torch.randint(len(self.times), (size,), generator=generator)
        return torch.tensor(self.times, dtype=torch.float64)[chosen]


def everywhere(process: Process, low: float = 0.02, high: float = 0.98) -> TimeDistribution:
    """DMD's law of noise levels: uniform in time; on EDM's curve where sigma is unbounded (DMD2 on EDM)."""
    return KarrasTime(high, low) if process.unbounded else Uniform(low, high)


def straight(process: Process) -> bool:
    """Whether data and noise are mixed with alpha + sigma = 1, as in rectified flows."""
    middle = 0.5 * process.noisiest
    return abs(process.alpha(middle) + process.sigma(middle) - 1) < 1e-6


def part_of(process: Process, t: Tensor) -> Tensor:
    """Fractions of the range of times (B,)."""
    if not process.unbounded:
        return t / process.noisiest
    low, high = 0.002 ** (1 / 7), process.noisiest ** (1 / 7)
    return (t ** (1 / 7) - low) / (high - low)


def time_at(process: Process, u: Tensor) -> Tensor:
    """Times of fractions (B,) of the range (inverse of `part_of`)."""
    if not process.unbounded:
        return process.noisiest * u
    low, high = 0.002 ** (1 / 7), process.noisiest ** (1 / 7)
    return (low + u * (high - low)) ** 7


def shifted_fraction(u: Tensor, shift: float) -> Tensor:
    """Fractions u pushed towards noise by `shift` > 1; the shift 1 / S undoes S."""
    return shift * u / (1 + (shift - 1) * u)


def within(process: Process, times: Sequence[float]) -> None:
    """Refuse times outside the process.

    Raises:
        FewstepError: a time below 0 or above the noisiest time of the process.
    """
    outside = [t for t in times if not 0 <= t <= process.noisiest]
    if outside:
        hint = f"Times of {type(process).__name__} lie in [0, {process.noisiest:g}]."
        raise FewstepError("a time lies outside the process", value=outside[0], hint=hint)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _clamped(process: Process, t: Tensor, least: float) -> Tensor:
    return t.clamp(least * process.noisiest, process.noisiest)


def _ordered(low: float, high: float) -> None:
    if not 0 <= low <= high <= 1:
        raise FewstepError("fractions of the range must rise within [0, 1]", value=(low, high), hint="Use 0.02, 0.98.")


def _needed(samples: Samples | None, process: Process) -> Samples:
    if samples is None:
        raise FewstepError(
            "this law of times follows the student's last call, and there is none",
            hint="Give the method a roll-out, or use another law.",
        )
    within(process, [float(samples.time.max()), float(samples.next_time.min())])
    return samples
