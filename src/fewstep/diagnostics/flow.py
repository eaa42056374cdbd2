"""The probability flow of a network, integrated finely: the reference that plans are measured against.

On the circle z = x / sqrt(alpha^2 + sigma^2), with angle phi = atan(sigma / alpha), every process is
z = cos(phi) x0 + sin(phi) eps and the flow is dz/dphi = v, the v prediction: finite at both ends, without signal and
without noise. Steps are equal in phi^(1/7), which is dense at small noise as the grid of arXiv 2206.00364 is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.process import Process

POWER = 7
CLEANEST = 1e-4
"""Angle below which no network is asked: the rest is one first-order step."""

Level = tuple[float, float]
"""Scales (alpha, sigma) of a state."""


def flow(denoiser: Denoiser, x: Tensor, start: Level, end: Level, steps: int = 16) -> Tensor:
    """States (B, ...) carried along the probability flow from scales `start` to `end` by classic Runge-Kutta steps.

    Four evaluations per step; the scales need not be those of the process (any multiple of them will do). Either
    direction. Where the process has no times near a clean end (a discrete one), the last piece is one DDIM step.

    Raises:
        FewstepError: no steps, or a network that says nothing at pure noise.
    """
    if steps < 1:
        raise FewstepError("the flow needs at least one step", value=steps)
    at, target = angle(*start), angle(*end)
    z = x / math.hypot(*start)
    least = cleanest(denoiser.process)
    if at != target:
        reach = max(target, least)
        if at > reach or target > at:
            z = _runge_kutta(denoiser, z, at, reach, steps)
            at = reach
        if target < at:
            turn = target - at
            z = math.cos(turn) * z + math.sin(turn) * velocity(denoiser, z, at)
    return z * math.hypot(*end)


def velocity(denoiser: Denoiser, z: Tensor, phi: float) -> Tensor:
    """dz/dphi of states z (B, ...) on the circle."""
    process = denoiser.process
    t = process.time_of_angle(phi)
    radius = math.hypot(process.alpha(t), process.sigma(t))
    return denoiser.predict(z * radius, t, "v_prediction") / radius


def angle(alpha: float, sigma: float) -> float:
    """phi = atan(sigma / alpha), in [0, pi/2]."""
    return math.atan2(sigma, alpha)


def cleanest(process: Process) -> float:
    """The smallest angle at which the network may be asked."""
    first = float(getattr(process, "cleanest", 0.0))
    return max(process.angle(first), CLEANEST)


def nodes(start: float, end: float, steps: int) -> list[float]:
    """Angles from `start` to `end`, both included, equally spaced in phi^(1/POWER)."""
    ramp = torch.linspace(start ** (1 / POWER), end ** (1 / POWER), steps + 1, dtype=torch.float64)
    return [start, *(ramp[1:-1] ** POWER).tolist(), end]


def _runge_kutta(denoiser: Denoiser, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    for here, middle, there in _halves(start, end, steps):
        span = there - here  # in the angle itself, whose quarter steps differ little within one step
        first = velocity(denoiser, z, here)
        second = velocity(denoiser, z + (middle - here) * first, middle)
        third = velocity(denoiser, z + (middle - here) * second, middle)
        fourth = velocity(denoiser, z + span * third, there)
        z = z + span / 6 * (first + 2 * second + 2 * third + fourth)
    return z


def _halves(start: float, end: float, steps: int) -> Iterator[tuple[float, float, float]]:
    places = nodes(start, end, steps)
    for here, there in pairwise(places):
        yield here, (here + there) / 2, there
