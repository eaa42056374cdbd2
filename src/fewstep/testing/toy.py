"""Distillation in seconds: points of a mixture, its exact teacher, and a small network as student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch
from fewstep.distillation.method import Method
from fewstep.metrics.distances import energy_distance
from fewstep.prediction import Prediction
from fewstep.process import Process, RectifiedFlow
from fewstep.testing.fit import fit_network
from fewstep.testing.mixture import Mixture
from fewstep.transition import coarse_path


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.1) -> Mixture:
    """Equal Gaussians on a circle."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(torch.full((modes,), 1 / modes), means, torch.full((modes, 2), std**2))


class PointNetwork(nn.Module):
    """Points (B, D) at network time (B,), and where asked at the time that a jump ends at (B,), to a raw output (B, D).

    Times enter as (t, s) / `horizon`; the end of the jump has a layer of its own, zero at the start, so that a student
    with two times begins as the network with one.
    """

    time_layers = ("first",)

    def __init__(self, dimension: int = 2, width: int = 96, horizon: float = 1000.0) -> None:
        super().__init__()
        self.horizon = horizon
        self.first = nn.Linear(dimension + 2 * len(_FREQUENCIES) + 1, width)
        self.span = nn.Linear(2 * len(_FREQUENCIES) + 1, width)
        self.rest = nn.Sequential(
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, dimension),
        )
        nn.init.zeros_(self.span.weight)
        nn.init.zeros_(self.span.bias)

    def forward(self, x: Tensor, time: Tensor, target_time: Tensor | None = None) -> Tensor:
        """Raw output (B, D)."""
        time = time.expand(len(x))
        hidden = self.first(torch.cat([x, _waves(time / self.horizon)], 1))
        if target_time is not None:
            hidden = hidden + self.span(_waves((time - target_time) / self.horizon))
        return self.rest(hidden)


_FREQUENCIES = (0.5, 1.0, 2.0, 4.0)


def _waves(t: Tensor) -> Tensor:
    angle = t[:, None] * (math.pi * torch.tensor(_FREQUENCIES, device=t.device, dtype=t.dtype))
    return torch.cat([t[:, None], angle.sin(), angle.cos()], 1)


@dataclass(frozen=True, eq=False)
class Toy:
    """A mixture, how it is noised, and what the networks predict.

    The network times of the process must lie in [0, `horizon`].

    width: of the hidden layers of its networks.
    pretraining: updates in which the network of `start` learns the teacher's output.
    store: states (N, K, D) of trajectories of the teacher and their times (K,), see `stored`.
    """

    mixture: Mixture = field(default_factory=ring)
    process: Process = field(default_factory=RectifiedFlow)
    prediction: Prediction = field(default_factory=lambda: Prediction("velocity"))
    width: int = 96
    pretraining: int = 1500
    store: tuple[Tensor, Tensor] | None = None

    def stored(self, points: int = 16, between: int = 4, count: int = 4096) -> Toy:
        """The toy whose batches hold stored trajectories of its exact teacher beside the data.

        Args:
            points: kept states of a trajectory besides the first.
            between: fine steps from each to the next.
            count: how many trajectories.
        """
        x = torch.randn(count, self.mixture.dimension, generator=torch.Generator().manual_seed(99))
        return replace(self, store=coarse_path(self.process, self.teacher(), x, points, between))

    @property
    def horizon(self) -> float:
        """Largest network time."""
        return max(1.0, abs(self.process.network_time(self.process.noisiest)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (self.mixture.dimension,)

    def teacher(self) -> Denoiser:
        """The exact denoiser."""
        network = self.mixture.network(self.process, self.prediction)
        return Denoiser(lambda x, time: network(x, time), self.process, self.prediction)

    def batches(self, size: int, data: bool = True) -> Callable[[torch.Generator], Batch]:
        """A stream of batches, with real points where the method wants data."""
        weights, means, covariances = self.mixture.weights, self.mixture.means, self.mixture.covariances
        if covariances.ndim != 2:
            raise ValueError("the toy draws from mixtures of independent coordinates")

        def batch(generator: torch.Generator) -> Batch:
            clean = path = times = None
            if self.store is not None:
                states, times = self.store
                path = states[torch.randint(len(states), (size,), generator=generator)]
            if data:
                which = torch.multinomial(weights, size, replacement=True, generator=generator)
                noise = torch.randn(size, self.mixture.dimension, generator=generator)
                clean = means[which].float() + covariances[which].sqrt().float() * noise
            return Batch(size=size, shape=(self.mixture.dimension,), clean=clean, path=path, times=times)

        return batch

    def start(self, seed: int = 0) -> PointNetwork:
        """A network that has learned the teacher's output roughly: what student and critic begin as."""
        return copy.deepcopy(_pretrained(self, seed))

    def distance(self, samples: Tensor, seed: int = 1000) -> float:
        """Energy distance of samples (N, D) from as many fresh points of the mixture, times 1000."""
        real = self.mixture.sample(len(samples), seed).float()
        return 1000 * float(energy_distance(samples.float(), real))

    def samples(self, student: Denoiser, method: Method, count: int = 2000, seed: int = 7) -> Tensor:
        """Samples (count, D) of a student, run in the method's steps."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, self.mixture.dimension, generator=generator)
        with torch.no_grad():
            return method.steps.sample(student, noise, None, generator)

    def model(self, network: nn.Module, two_times: bool = False) -> Denoiser:
        """A network of this toy as a denoiser."""
        return Denoiser(network, self.process, self.prediction, two_times)


@lru_cache(maxsize=16)
def _pretrained(toy: Toy, seed: int, size: int = 512) -> PointNetwork:
    """Regression of the teacher's raw output at uniform times, Adam with a cosine."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PointNetwork(toy.mixture.dimension, toy.width, toy.horizon)
    teacher, student, batches = toy.teacher(), toy.model(network), toy.batches(size)

    def loss() -> Tensor:
        clean = batches(generator).clean
        assert clean is not None
        t = toy.process.noisiest * (0.001 + 0.998 * torch.rand(size, generator=generator, dtype=torch.float64))
        x = toy.process.add_noise(clean, torch.randn(clean.shape, generator=generator), t)
        with torch.no_grad():
            wanted = teacher.raw(x, t)
        return (student.raw(x, t) - wanted).square().mean()

    fit_network(network, loss, toy.pretraining, rate=2e-3)
    return network


@lru_cache(maxsize=1)
def standard() -> Toy:
    """Eight modes on a circle in a rectified flow; one object, so that its starting network is trained once."""
    return Toy()
