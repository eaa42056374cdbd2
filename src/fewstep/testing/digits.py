"""Distillation in minutes on real pictures: scikit-learn's 8x8 digits, ten classes, a small teacher of our own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch
from fewstep.metrics.distances import frechet, precision_recall
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.testing.fit import fit_network
from fewstep.testing.kernel_digits import Digits, load_digits
from fewstep.transition import ddim_path

CLASSES, PIXELS, GROUPS = 10, 64, 6
STORED, POINTS = 4096, 16


class DigitNetwork(nn.Module):
    """A residual perceptron: digits (B, size) at network time (B,) with classes (B,) to a raw output (B, size).

    Class `classes` means "any". The end of a jump enters by a layer that is zero at the start, so that a student with
    two times begins as the network with one. `blocks.1` is the middle, where adversaries look.
    """

    time_layers = ("moment",)

    def __init__(self, width: int = 128, depth: int = 3, size: int = PIXELS, classes: int = CLASSES) -> None:
        super().__init__()
        self.width, self.size, self.classes = width, size, classes
        self.first = nn.Linear(size, width)
        self.label = nn.Embedding(classes + 1, width)
        self.moment = nn.Linear(2 * _WAVES + 1, width)
        self.span = nn.Linear(2 * _WAVES + 1, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.last = nn.Linear(width, size)
        for layer in (self.span, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, time: Tensor, target_time: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Raw output (B, size)."""
        time = time.expand(len(x)) / 1000
        labels = torch.full((len(x),), self.classes) if class_labels is None else class_labels
        given = self.moment(_waves(time)) + self.label(labels)
        if target_time is not None:
            given = given + self.span(_waves(time - target_time / 1000))
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, given)
        return self.last(hidden)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.told = nn.Linear(width, width)
        self.into = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        inner: Tensor = self.into(self.norm(hidden) + self.told(F.silu(given)))
        return hidden + self.out(F.silu(inner))


_WAVES = 6


def _waves(t: Tensor) -> Tensor:
    angle = t[:, None] * (math.pi * 2.0 ** torch.arange(-1, _WAVES - 1, device=t.device, dtype=t.dtype))
    return torch.cat([t[:, None], angle.sin(), angle.cos()], 1)


class DigitJudge(nn.Module):
    """A classifier of real digits (B, size) -> logits (B, classes), and its features (B, 32)."""

    def __init__(self, size: int = PIXELS, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


Trajectories = tuple[Tensor, Tensor, Tensor]
"""Stored states (N, K, size) of the teacher, their process times (K,), noisiest first, and the classes (N,)."""


@dataclass(frozen=True, eq=False)
class DigitBed:
    """The digits, a trained teacher and a classifier that no training of generators saw.

    store: gives each batch stored trajectories instead of real digits. classes: those that batches are of. Other data
    of several classes do as well; the network says how many numbers and classes there are. further: (samples, held-out
    data) -> measures that such data have besides.
    """

    data: Digits
    network: DigitNetwork
    judge: DigitJudge
    store: Trajectories | None = None
    classes: tuple[int, ...] | None = None
    process: RectifiedFlow = field(default_factory=RectifiedFlow)
    prediction: Prediction = field(default_factory=lambda: Prediction("velocity"))
    further: Callable[[Tensor, Tensor], dict[str, float]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.network.size,)

    def teacher(self) -> Denoiser:
        """The trained teacher."""
        return self.model(self.network)

    def model(self, network: nn.Module, two_times: bool = False) -> Denoiser:
        """A network of this bed as a denoiser."""
        return Denoiser(network, self.process, self.prediction, two_times)

    def start(self) -> DigitNetwork:
        """What student and critic begin as: the teacher."""
        return copy.deepcopy(self.network).requires_grad_(True)

    def fresh(self, width: int, seed: int = 0) -> DigitNetwork:
        """A student of another width, with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DigitNetwork(width, len(self.network.blocks), self.network.size, self.network.classes)

    def batches(self, size: int) -> Callable[[torch.Generator], Batch]:
        """A stream of batches of real digits, or of stored trajectories and their ends."""
        labels = self.data.train_labels if self.store is None else self.store[2]
        classes = range(self.network.classes) if self.classes is None else self.classes
        mine = torch.isin(labels, torch.tensor(list(classes))).nonzero().flatten()

        def batch(generator: torch.Generator) -> Batch:
            rows = mine[torch.randint(len(mine), (size,), generator=generator)]
            given = Batch(
                size,
                self.shape,
                None,
                class_condition(labels[rows]),
                class_condition(torch.full((size,), self.network.classes)),
            )
            if self.store is None:
                return replace(given, clean=self.data.train[rows])
            path = self.store[0][rows]
            return replace(given, clean=path[:, -1], path=path, times=self.store[1])

        return batch

    def stored(self, guidance: float = 1.0, count: int = STORED, points: int = POINTS, seed: int = 99) -> DigitBed:
        """The bed with trajectories of the teacher (`points` jumps, four Euler steps each) in place of real digits."""
        return replace(self, store=_trajectories(self, guidance, count, points, seed))

    def walk(
        self, guidance: float, labels: Tensor, generator: torch.Generator, steps: int
    ) -> tuple[list[Tensor], Tensor]:
        """States of the teacher's flow by Euler's steps, and their times (steps + 1,)."""
        teacher, count = self.teacher(), len(labels)
        times = torch.linspace(self.process.noisiest, 0, steps + 1, dtype=torch.float64)
        noise = torch.randn(count, *self.shape, generator=generator)

        def clean(x: Tensor, t: Tensor) -> Tensor:
            within = teacher(x, t, class_condition(labels))
            if guidance == 1:
                return within
            free = teacher(x, t, class_condition(torch.full((count,), self.network.classes)))
            return free + guidance * (within - free)

        with torch.no_grad():
            return list(ddim_path(self.process, clean, noise, times)), times

    @torch.no_grad()
    def samples(self, student: Denoiser, steps: Chain, labels: Tensor, seed: int = 7) -> Tensor:
        """Samples (B, size) of a student for classes (B,)."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), *self.shape, generator=generator)
        return steps.sample(student, noise, class_condition(labels), generator)

    @torch.no_grad()
    def measures(self, samples: Tensor, labels: Tensor) -> dict[str, float]:
        """Distance of features from held-out digits, precision, recall, share of right classes, spread within classes.

        Precision and recall are means over groups of as many samples as there are held-out digits. `spread`: mean
        distance of two samples of a class over that of two held-out digits of the class (1 as varied as the data).
        """
        real, drawn = self.judge.body(self.data.test), self.judge.body(samples)
        parts = [precision_recall(part, real) for part in drawn.split(len(real)) if len(part) == len(real)]
        right = (self.judge(samples).argmax(1) == labels).float().mean()
        spreads = [
            torch.pdist(samples[labels == c]).mean() / torch.pdist(self.data.test[self.data.test_labels == c]).mean()
            for c in range(self.network.classes)
        ]
        return {
            "frechet": frechet(drawn, real),
            "precision": float(torch.stack([p.float().mean() for p, _ in parts]).mean()),
            "recall": float(torch.stack([r.float().mean() for _, r in parts]).mean()),
            "right": float(right),
            "spread": float(torch.stack(spreads).mean()),
            **({} if self.further is None else self.further(samples, self.data.test)),
        }

    def asked(self) -> Tensor:
        """Classes that an evaluation asks for: those of the held-out digits, several times over."""
        return self.data.test_labels.repeat(GROUPS)


@lru_cache(maxsize=8)
def _trajectories(bed: DigitBed, guidance: float, count: int, points: int, seed: int) -> Trajectories:
    labels = torch.arange(count) % bed.network.classes
    states, times = bed.walk(guidance, labels, torch.Generator().manual_seed(seed), 4 * points)
    return torch.stack(states[::4], 1), times[::4], labels


def class_condition(labels: Tensor) -> Condition:
    """The network's condition for classes (B,)."""
    return {"class_labels": labels}


def train_digits(
    steps: int = 6000,
    size: int = 256,
    width: int = 128,
    seed: int = 0,
    data: Digits | None = None,
    prediction: Prediction = Prediction("velocity"),
) -> DigitBed:
    """Teacher (flow matching, one label in ten dropped, averaged weights) and classifier, both from the train part.

    data: other samples (N, size) with classes 0, 1, ..., in place of the digits. prediction: `velocity`, or `edm` where
    samples have more numbers than the network is wide, so that noise does not fit through it.
    """
    data = load_digits(seed) if data is None else data
    numbers, classes = data.train.shape[1], int(data.train_labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge, network = DigitJudge(numbers, classes), DigitNetwork(width, size=numbers, classes=classes)
        _classify(judge, data)
        _match(network, data, steps, size, torch.Generator().manual_seed(seed), prediction)
    parts = network.eval().requires_grad_(False), judge.eval().requires_grad_(False)
    return DigitBed(data, *parts, prediction=prediction)


def _classify(judge: DigitJudge, data: Digits, steps: int = 1500, size: int = 128) -> None:
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.1)
    for _ in range(steps):
        rows = torch.randint(len(data.train), (size,))
        x = data.train[rows] + 0.3 * torch.randn(size, data.train.shape[1])
        loss = F.cross_entropy(judge(x), data.train_labels[rows], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _match(
    network: DigitNetwork,
    data: Digits,
    steps: int,
    size: int,
    generator: torch.Generator,
    prediction: Prediction,
) -> None:
    def loss() -> Tensor:
        rows = torch.randint(len(data.train), (size,), generator=generator)
        drop = torch.rand(size, generator=generator) < 0.1
        clean, labels = data.train[rows], data.train_labels[rows].masked_fill(drop, network.classes)
        noise, t = torch.randn(clean.shape, generator=generator), torch.rand(size, 1, generator=generator)
        scale, (a, b) = prediction.input_scale(1 - t, t), prediction.weights(1 - t, t)
        found = network(scale * ((1 - t) * clean + t * noise), 1000 * t[:, 0], class_labels=labels)
        return (found - (a * clean + b * noise)).square().mean()

    fit_network(network, loss, steps, rate=1e-3, average=0.998)
