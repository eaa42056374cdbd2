"""One step of a sampler from a clean prediction: deterministic (DDIM), forward noising, and the Gaussian in between.

Every step of a first-order sampler goes from x_t and a clean prediction x0 to a Gaussian

    x_s ~ N(alpha_s x0 + sqrt(sigma_s^2 - std^2) eps, std^2),      eps = (x_t - alpha_t x0) / sigma_t,

whose marginal is that of the process for any `std` in [0, sigma_s] (arXiv 2010.02502, eq. 12): 0 is DDIM, sigma_s
noises the clean prediction anew (consistency sampling), values between keep part of the noise. Training simulates
samplers with these functions; plans hold the same numbers as coefficients. A law is drawn from and is asked for the
density of a draw: what pairwise and policy-gradient losses on the steps of a sampler need.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.process import Process

Reduction = Literal["sum", "mean"]
"""Over the numbers of a sample: `sum` is the density's logarithm, `mean` that divided by their count (PSO, DDPO)."""


@dataclass(frozen=True)
class Transition:
    """The Gaussian law of the next state.

    Attributes:
        mean: (B, ...).
        std: standard deviation, broadcasts against the mean; 0 where the step is deterministic.
    """

    mean: Tensor
    std: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The next state for unit noise (B, ...)."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor, reduction: Reduction) -> Tensor:
        """Log density (B,) of next states (B, ...), in float32 at least.

        Args:
            x: next states.
            reduction: over the numbers of a sample; a scale that was tuned with `mean` is divided by their count for
                `sum`.

        Raises:
            FewstepError: the step is deterministic: it has no density.
        """
        self._need_noise()
        mean, std = _wide(self.mean), _wide(self.std)
        unit = (x.to(mean) - mean) / std
        density = -0.5 * unit.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return _reduced(density, reduction)

    def kl(self, other: Transition, reduction: Reduction) -> Tensor:
        """KL divergence (B,) from this law to one of the same deviation: |mean - other|^2 / (2 std^2).

        Raises:
            FewstepError: the step is deterministic.
        """
        self._need_noise()
        away = (_wide(self.mean) - _wide(other.mean)) / _wide(self.std)
        return _reduced(0.5 * away.square(), reduction)

    def _need_noise(self) -> None:
        if self.std.device.type == "cpu" and not bool((self.std > 0).all()):  # elsewhere a look would wait for it
            hint = "Leave deterministic steps out, such as the last, or add noise (eta above 0)."
            raise FewstepError("a step without noise has no density", hint=hint)


def _wide(x: Tensor) -> Tensor:
    """At least float32: the logarithms of nearly equal densities are subtracted."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _reduced(each: Tensor, reduction: Reduction) -> Tensor:
    flat = each.flatten(1)
    return flat.sum(1) if reduction == "sum" else flat.mean(1)


def transition(process: Process, x: Tensor, clean: Tensor, t: Tensor, s: Tensor, std: Tensor) -> Transition:
    """Law of the states at times s (B,), for states x (B, ...) at times t (B,) and their clean predictions.

    Args:
        process: the noising process.
        x: states (B, ...).
        clean: clean predictions (B, ...).
        t: times of the states (B,).
        s: times of the next states (B,).
        std: standard deviations of the fresh noise (B,), each at most sigma(s).
    """
    alpha_t, sigma_t = process.scales(t, x)
    alpha_s, sigma_s = process.scales(s, x)
    fresh = std.to(x).reshape(sigma_s.shape)
    kept = (sigma_s**2 - fresh**2).clamp(min=0).sqrt()
    ratio = kept / sigma_t
    return Transition(ratio * x + (alpha_s - alpha_t * ratio) * clean, fresh)


def eta_std(process: Process, s: Tensor, eta: float) -> Tensor:
    """Fresh noise sigma_s sin(eta pi / 2) (B,) at times s: eta 0 is DDIM, or Euler's step of a flow; 1 noises anew."""
    return process.sigma(s.double()) * math.sin(0.5 * math.pi * eta)


def ancestral_std(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """Fresh noise (B,) of Euler-ancestral steps from t to s, in states at s.

    In units of r = sigma / alpha: r_up^2 = r_s^2 (r_t^2 - r_s^2) / r_t^2; the mean goes down to sqrt(r_s^2 - r_up^2).
    """
    t, s = t.double(), s.double()
    ratio = process.sigma(s) * process.alpha(t) / (process.alpha(s) * process.sigma(t))
    return process.sigma(s) * (1 - ratio**2).clamp(min=0).sqrt()


def flow_sde_transition(process: Process, x: Tensor, clean: Tensor, t: Tensor, s: Tensor, eta: float) -> Transition:
    """One Euler-Maruyama step of the reverse SDE of a flow x = (1 - u) x0 + u eps (Flow-GRPO, arXiv 2505.05470).

        x_s ~ N(x + [v + g^2 / (2 u) (x + (1 - u) v)] du, -g^2 du),     g = eta sqrt(u / (1 - u)),  v = (x - x0) / u

    u the noise scale at t, du < 0 its step. Where u is 1, g is taken at the next noise scale. The marginals are those
    of the flow only as steps shrink; those of `transition` always are.

    Args:
        process: a flow, alpha + sigma = 1.
        x: states (B, ...) at times t.
        clean: clean predictions (B, ...).
        t: times of the states (B,).
        s: times of the next states (B,).
        eta: noise level; published values lie between 0.5 and 1.

    Raises:
        FewstepError: alpha + sigma is not 1.
    """
    if not bool(((process.alpha(t.double()) + process.sigma(t.double()) - 1).abs() < 1e-6).all()):
        hint = "Use eta steps, which every process has."
        raise FewstepError("these steps are of flows, alpha + sigma = 1", value=repr(process), hint=hint)
    (_, u), (_, after) = process.scales(t, x), process.scales(s, x)
    du = after - u
    level = torch.where(u >= 1, after, u)
    g = eta * (u / (1 - level)).sqrt()
    v = (x - clean) / u
    mean = x + (v + g**2 / (2 * u) * (x + (1 - u) * v)) * du
    return Transition(mean, g * (-du).sqrt())


def ddim_step(process: Process, x: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """States at times s (B,) from states at t (B,) with the clean prediction held fixed.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0 (arXiv 2010.02502): the exact solution of
    the probability-flow ODE where the clean prediction does not change on the way.
    """
    alpha_t, sigma_t = process.scales(t, x)
    alpha_s, sigma_s = process.scales(s, x)
    ratio = sigma_s / sigma_t
    return ratio * x + (alpha_s - alpha_t * ratio) * clean


def ddim_path(
    process: Process, clean: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor
) -> Iterator[Tensor]:
    """States (B, ...) at falling times (K,), from x at the first of them, by DDIM steps along clean(x, t (B,))."""
    yield x
    for t, s in itertools.pairwise(times.unbind()):
        start, end = t.expand(len(x)), s.expand(len(x))
        x = ddim_step(process, x, clean(x, start), start, end)
        yield x


def coarse_path(
    process: Process, clean: Callable[[Tensor, Tensor], Tensor], x: Tensor, points: int, between: int
) -> tuple[Tensor, Tensor]:
    """Some states of a path from the noisiest time to 0 in `points` times `between` equal DDIM steps.

    Args:
        process: the noising process.
        clean: (states (B, ...), times (B,)) -> clean predictions.
        x: first states (B, ...).
        points: states that are kept besides the first.
        between: steps from one kept state to the next.

    Returns:
        The states (B, points + 1, ...) and their times (points + 1,).
    """
    times = torch.linspace(process.noisiest, 0, points * between + 1, dtype=torch.float64)
    states = itertools.islice(ddim_path(process, clean, x, times), 0, None, between)
    return torch.stack(list(states), 1), times[::between]


def jump_end(jumps: Sequence[Sequence[float]], time: Tensor) -> Tensor:
    """Where the jumps end that begin at these times: of pairs (start, end) that with the nearest start; nothing waits
    for the device.

    Args:
        jumps: pairs of times.
        time: of any shape.

    Returns:
        Times of the same shape, float32.
    """
    table = torch.tensor(jumps, dtype=torch.float64, device=time.device)
    nearest = (table[:, :1] - time.reshape(1, -1).double()).abs().argmin(0)
    return table[nearest, 1].reshape(time.shape).to(torch.float32)


def forward_step(process: Process, x: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """States at noisier times s (B,) from states at t (B,) and unit noise: a draw of q(x_s | x_t)."""
    alpha_t, sigma_t = process.scales(t, x)
    alpha_s, sigma_s = process.scales(s, x)
    ratio = alpha_s / alpha_t
    return ratio * x + (sigma_s**2 - (ratio * sigma_t) ** 2).clamp(min=0).sqrt() * noise


def first_state(process: Process, t: float, noise: Tensor) -> Tensor:
    """The state that a sampler starts from at time t: unit noise times the deviation of noisy unit-variance data there.

    That is sqrt(alpha^2 + sigma^2), and sigma where alpha is 1 (EDM).
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    return noise * (sigma if alpha == 1 else math.hypot(alpha, sigma))


def noise_like(shape: tuple[int, ...], generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    """Standard normal noise from a CPU generator, on the device and in the dtype of `like`."""
    noise = torch.randn(shape, generator=generator)
    return noise if like is None else noise.to(like)
