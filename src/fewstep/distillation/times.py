"""Laws of random process times: what noise levels an objective looks at.

A law is called with (size, process, generator, samples) and returns times (size,) in float64 on the CPU, within the
process. `samples` are the student's, for the laws that depend on its last call; the others take None.
Laws on a fraction of the range [0, noisiest] may be shifted: u -> S u / (1 + (S - 1) u) (arXiv 2403.03206).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.distillation.core import Samples
from fewstep.distillation.part import part
from fewstep.errors import FewstepError
from fewstep.process import Process

TimeDistribution = Callable[[int, Process, torch.Generator, Samples | None], Tensor]
"""(number of samples, process, generator, the student's samples if there are any) -> one time per sample."""


@part
def uniform_times(low: float = 0.02, high: float = 0.98, shift: float = 1.0) -> TimeDistribution:
    """Uniform between two fractions of the range; DMD has [0.02, 0.98] (arXiv 2311.18828).

    Raises:
        FewstepError: fractions that do not rise within [0, 1].
    """
    if not 0 <= low <= high <= 1:
        hint = "Use 0.02, 0.98."
        raise FewstepError("fractions of the range must rise within [0, 1]", value=(low, high), hint=hint)

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        u = low + (high - low) * _uniform(size, generator)
        return process.noisiest * shifted_fraction(u, shift)

    return draw


@part
def log_normal_times(mean: float = -1.2, std: float = 1.2, least: float = 2.5e-5) -> TimeDistribution:
    """log(sigma / alpha) normal, clamped to [least, noisiest]; EDM has (-1.2, 1.2) (arXiv 2206.00364, table 1)."""

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        return _clamped(process, process.time(-(mean + std * noise)), least)

    return draw


@part
def karras_times(
    top: float = 0.8,
    bottom: float = 0.0,
    rho: float = 7.0,
    lowest: float = 0.002,
    highest: float = 80.0,
    least: float = 0.0,
) -> TimeDistribution:
    """sigma / alpha on the curve of EDM's grid at u uniform in [bottom, top]: SiD's law (arXiv 2404.04057)."""

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        low, high = lowest ** (1 / rho), highest ** (1 / rho)
        u = bottom + (top - bottom) * _uniform(size, generator)
        ratio = (low + u * (high - low)) ** rho
        return _clamped(process, process.time(-ratio.log()), least)

    return draw


@part
def logit_normal_times(
    mean: float = 0.0, std: float = 1.0, shift: float = 1.0, least: float = 1e-3
) -> TimeDistribution:
    """Fraction of the range sigmoid(mean + std n); few-step SiD has (log 2, 1.6) (arXiv 2509.25127)."""

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        u = shifted_fraction((mean + std * noise).sigmoid(), shift)
        return _clamped(process, process.noisiest * u, least)

    return draw


@part
def beta_times(a: float = 1.0, b: float = 1.0, least: float = 1e-3) -> TimeDistribution:
    """Fraction of the range with density Beta(a, b); (1, 1) is uniform."""

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        from scipy.special import betaincinv

        u = torch.from_numpy(betaincinv(a, b, _uniform(size, generator).numpy()))
        return _clamped(process, process.noisiest * u, least)

    return draw


def annealed_beta(
    step: int, steps: int = 10_000, start: tuple[float, float] = (4.0, 1.5), end: tuple[float, float] = (1.0, 1.0)
) -> TimeDistribution:
    """The Beta law of a training step: a cosine from `start` (mostly noisy) to `end` (DMDR, arXiv 2511.13649)."""
    rest = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    a, b = (last + rest * (first - last) for first, last in zip(start, end, strict=True))
    return beta_times(a, b)


@part
def last_interval(least: float = 0.02, margin: float = 0.01, whole: bool = False) -> TimeDistribution:
    """Uniform on the interval of the student's last call, from its end to its start: TDM (arXiv 2503.06674).

    Args:
        least: fraction of the range (see `part_of`) that no time is below.
        margin: so much below the start of the interval, likewise a fraction.
        whole: up to the noisiest time instead of the start (TDM's overlapping variant).
    """

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        samples = _needed(samples, process)
        high = torch.ones_like(samples.time) if whole else part_of(process, samples.time)
        low = part_of(process, samples.next_time).clamp(min=least)
        high = torch.maximum(high - margin, low)
        return time_at(process, low + (high - low) * _uniform(size, generator))

    return draw


@part
def below_last_call(least: float = 0.02, shift: float = 1.0) -> TimeDistribution:
    """Uniform below the time of the student's last call: the guidance branch of Decoupled DMD (arXiv 2511.22677).

    A process with a shift keeps its time before the shift, as the authors draw it; `shift` is for schedules that shift
    on top: the bounds are then taken before it.
    """

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        samples = _needed(samples, process)
        low = shifted_fraction(torch.tensor(least, dtype=torch.float64), 1 / shift)
        high = torch.maximum(shifted_fraction(part_of(process, samples.time), 1 / shift), low)
        return time_at(process, shifted_fraction(low + (high - low) * _uniform(size, generator), shift))

    return draw


@part
def fixed_times(times: tuple[float, ...]) -> TimeDistribution:
    """One of the given process times, all equally likely; DMD2 has the whole numbers 20..980 (arXiv 2405.14867).

    Raises:
        FewstepError: no times; when drawn: times outside of the process.
    """
    if not times:
        raise FewstepError("a grid of times is empty", hint="Give one time at least.")

    def draw(size: int, process: Process, generator: torch.Generator, samples: Samples | None = None) -> Tensor:
        within(process, times)
        chosen = torch.randint(len(times), (size,), generator=generator)
        return torch.tensor(times, dtype=torch.float64)[chosen]

    return draw


def everywhere(process: Process, low: float = 0.02, high: float = 0.98) -> TimeDistribution:
    """DMD's law of noise levels: uniform in time; on EDM's curve where sigma is unbounded (DMD2 on EDM)."""
    return karras_times(high, low) if process.unbounded else uniform_times(low, high)


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


def _needed(samples: Samples | None, process: Process) -> Samples:
    if samples is None:
        raise FewstepError(
            "this law of times follows the student's last call, and there is none",
            hint="Give the method a roll-out, or use another law.",
        )
    within(process, [float(samples.time.max()), float(samples.next_time.min())])
    return samples
