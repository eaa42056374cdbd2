"""Gaussian mixtures: data whose score, data estimate and probability flow are known exactly, for every process.

The testbed of solvers, objectives and metrics: what a network would have to learn is computed here in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.executor import Network
from fewstep.prediction import Prediction
from fewstep.process import Process

Scale = float | Tensor
"""A number, or one value per state, shape (B,)."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of K Gaussians in D dimensions. States are tensors (B, ...) with D numbers per sample, of any dtype.

    weights: (K,), positive, summing to 1.
    means: (K, D).
    covariances: (K, D) variances of independent coordinates, or (K, D, D) full matrices.

    Raises:
        FewstepError: shapes disagree, weights are not a distribution, or a covariance is not one.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        w, mu, c = self.weights, self.means, self.covariances
        if mu.ndim != 2 or w.shape != mu.shape[:1] or c.shape not in (mu.shape, (*mu.shape, mu.shape[1])):
            raise FewstepError(
                "a mixture needs weights (K,), means (K, D) and covariances (K, D) or (K, D, D)",
                value=[tuple(t.shape) for t in (w, mu, c)],
                hint="Give one mean and one covariance per weight.",
            )
        if bool((w <= 0).any()) or abs(float(w.sum()) - 1) > 1e-6:
            raise FewstepError(
                "mixture weights must be positive and sum to 1", value=w.tolist(), hint="Divide by the sum."
            )
        object.__setattr__(self, "weights", w / w.sum())  # weights given in float32 sum to 1 in float64 too
        if bool((self._spectrum[0] < 0).any()):
            raise FewstepError("a covariance has a negative eigenvalue", hint="Variances are squares.")

    @classmethod
    def gaussian(cls, mean: Tensor | list[float], covariance: Tensor | list[float]) -> Mixture:
        """A single Gaussian: mean (D,), covariance (D,) or (D, D); tensors or lists."""
        mean, covariance = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, covariance))
        return cls(torch.ones(1), mean.unsqueeze(0), covariance.unsqueeze(0))

    @classmethod
    def line(cls, weights: list[float], means: list[float], stds: list[float]) -> Mixture:
        """A mixture in one dimension."""
        return cls(torch.tensor(weights, dtype=torch.float64), _column(means), _column(stds) ** 2)

    # --- moments, density, samples ----------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """D, the numbers per sample."""
        return self.means.shape[1]

    def mean(self) -> Tensor:
        """Mean of the data, (D,)."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Covariance of the data, (D, D)."""
        c = self.covariances if self.covariances.ndim == 3 else torch.diag_embed(self.covariances)
        away = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, c + away.unsqueeze(2) * away.unsqueeze(1))

    def log_density(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0) -> Tensor:
        """Log density (B,) of noisy states (B, ...) at scales (alpha, sigma); of the data by default."""
        _, joint, _, _ = self._components(x, alpha, sigma)
        return joint.logsumexp(1)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Data (count, D) in float64; the same seed gives the same data."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        variances, axes = self._spectrum
        away = variances[which].sqrt() * noise
        return self.means[which] + (away if axes is None else torch.einsum("bij,bj->bi", axes[which], away))

    # --- what a perfect network says --------------------------------------------------------------------------------

    def estimates(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor]:
        """Exact conditional means (E[x0 | x], E[eps | x]) of states (B, ...), each of the shape of x.

        Each comes from its own formula, so that neither alpha = 0 nor sigma = 0 divides by zero.
        """
        white, joint, a, s = self._components(x, alpha, sigma)
        share = joint.softmax(1).to(x.dtype)
        variances, axes = self._ready(x)
        data_away, noise = a * variances * white, s * white
        if axes is not None:
            data_away, noise = (torch.einsum("kij,bkj->bki", axes, part) for part in (data_away, noise))
        data = self.means.to(x) + data_away
        return tuple(torch.einsum("bk,bki->bi", share, part).reshape(x.shape) for part in (data, noise))  # type: ignore[return-value]

    def score(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """Gradient of the log density at noisy states (B, ...); sigma must be positive."""
        return -self.estimates(x, alpha, sigma)[1] / _factor(sigma, x)

    def output(self, x: Tensor, alpha: Scale, sigma: Scale, prediction: Prediction) -> Tensor:
        """Raw output of a perfect network at (unscaled) states (B, ...)."""
        data, noise = self.estimates(x, alpha, sigma)
        a, b = prediction.weights(_factor(alpha, x), _factor(sigma, x))
        return a * data + b * noise

    def network(self, process: Process, prediction: Prediction) -> Network:
        """The perfect network, as the executor and pipelines call it: scaled states (B, ...), and network time, 0-dim
        or (B,), to raw output.
        """

        def network(x: Tensor, time: Tensor) -> Tensor:
            t = process.from_network_time(torch.as_tensor(time).double())
            alpha, sigma = process.alpha(t), process.sigma(t)
            state = x / _factor(prediction.input_scale(alpha, sigma), x)
            return self.output(state, alpha, sigma, prediction)

        return network

    # --- probability flow -------------------------------------------------------------------------------------------

    def flow(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Exact probability-flow map of states (B, ...) from scales (alpha, sigma) `start` to `end`.

        One Gaussian: linear, in any dimension. A mixture in one dimension: the monotone map that keeps the distribution
        function, found by bisection to the last bits.

        Raises:
            FewstepError: a mixture in more than one dimension, whose flow has no closed form.
        """
        each = self._component_flows(x, start, end)
        if len(self.weights) == 1:
            return each[:, 0].reshape(x.shape)
        if self.dimension > 1:
            raise FewstepError(
                "the flow of a mixture has no closed form beyond one dimension",
                value=self.dimension,
                hint="Use one Gaussian, or a product of one-dimensional mixtures.",
            )
        # the maps of the single components bracket the map of the mixture
        low, high = each.amin(1).squeeze(1).double(), each.amax(1).squeeze(1).double()
        left, right = self._tails(x.reshape(-1).double(), *start)
        in_left = left < right  # the smaller tail keeps its digits
        for _ in range(80):
            middle = (low + high) / 2
            below, above = self._tails(middle, *end)
            too_low = torch.where(in_left, below < left, above > right)
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return ((low + high) / 2).to(x.dtype).reshape(x.shape)

    # --- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor | None]:
        """Variances (K, D) along the axes (K, D, D), whose columns are directions; None: the coordinate axes."""
        if self.covariances.ndim == 2:
            return self.covariances, None
        values, axes = torch.linalg.eigh(self.covariances)
        tiny = 1e-12 * values.abs().amax(1, keepdim=True)
        return torch.where(values.abs() < tiny, values.clamp(min=0), values), axes

    def _ready(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        variances, axes = self._spectrum
        return variances.to(x), None if axes is None else axes.to(x)

    def _away(self, x: Tensor, alpha: Tensor) -> Tensor:
        """States seen from each (scaled) mean along its axes, (B, K, D)."""
        away = x.reshape(len(x), 1, -1) - alpha * self.means.to(x)
        axes = self._ready(x)[1]
        return away if axes is None else torch.einsum("kij,bki->bkj", axes, away)

    def _components(self, x: Tensor, alpha: Scale, sigma: Scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Deviations divided by variances (B, K, D), log joint densities (B, K), and the scales as (B or 1, 1, 1)."""
        a, s = (_factor(value, x).reshape(-1, 1, 1) for value in (alpha, sigma))
        variance = a**2 * self._ready(x)[0] + s**2
        away = self._away(x, a)
        white = away / variance
        logs = (away * white + (2 * math.pi * variance).log()).sum(2)
        return white, self.weights.log().to(x) - 0.5 * logs, a, s

    def _component_flows(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Where the flow of each component alone would take each state, (B, K, D)."""
        variances, axes = self._ready(x)
        stretch = ((end[0] ** 2 * variances + end[1] ** 2) / (start[0] ** 2 * variances + start[1] ** 2)).sqrt()
        moved = stretch * self._away(x, _factor(start[0], x))
        moved = moved if axes is None else torch.einsum("kij,bkj->bki", axes, moved)
        return end[0] * self.means.to(x) + moved

    def _tails(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Mass below and above each point of a one-dimensional mixture, both with full relative precision, (B,)."""
        deviation = (alpha**2 * self.covariances.reshape(-1) + sigma**2).sqrt()
        z = (x.unsqueeze(1) - alpha * self.means.reshape(-1)) / (deviation * math.sqrt(2))
        return 0.5 * torch.erfc(-z) @ self.weights, 0.5 * torch.erfc(z) @ self.weights


def _factor(value: Scale, x: Tensor) -> Tensor:
    """A scale as a tensor that multiplies states (B, ...)."""
    scale = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.ndim else scale


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)
