"""A claim: ways to train at equal cost, and questions about them that numbers answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distill.beds.digits import DigitBed
from fewstep.distill.core import Model
from fewstep.distill.method import Method
from fewstep.distill.steps import Steps
from fewstep.errors import FewstepError
from fewstep.metrics.intervals import seed_interval
from fewstep.process import Process
from fewstep.systems.distill.cost import passes_of
from fewstep.train.toy import distil, engine_of

Make = Callable[[Process, int], Method]
"""(process, updates of the training) -> the method, its stages laid over these updates."""

Numbers = dict[str, dict[str, float]]
"""Name of a draw -> metric -> value."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    make:
        The method.
    draws:
        How the student is run for its measurements, by name; the method's own steps, named "", unless given.
    bed:
        What it is trained on, such as `lambda bed: bed.stored(2.0)`.
    width:
        Of the student, with random weights; 0: the teacher's width and weights.
    share:
        Of the budget of network passes; 0: the teacher itself, untrained, in the method's steps.
    """

    make: Make
    draws: Callable[[Process], Mapping[str, Steps]] | None = None
    bed: Callable[[DigitBed], DigitBed] = lambda bed: bed
    width: int = 0
    share: float = 1.0

    def passes(self, bed: DigitBed, batch: int, steps: int = 4) -> float:
        """Samples through networks per update of the student; backward counts two more."""
        engine = engine_of(self.bed(bed), self.make(bed.process, steps), batch, self._student(bed, 0))
        return passes_of(engine, bed.network, steps)

    def train(self, bed: DigitBed, updates: int, batch: int, seed: int, **settings: Any) -> Numbers:
        """Train once and measure every draw."""
        method = self.make(bed.process, max(1, updates))
        if not self.share:
            return self.measured(bed, bed.teacher(), method)
        student = self._trained(bed, method, updates, batch, seed, **settings)
        return self.measured(bed, student, method)

    def _trained(self, bed: DigitBed, method: Method, updates: int, batch: int, seed: int, **settings: Any) -> Model:
        """A finished student."""
        betas = (settings.pop("momentum", method.settings.betas[0]), method.settings.betas[1])
        method = dataclasses.replace(method, settings=dataclasses.replace(method.settings, betas=betas))
        student = self._student(bed, seed)
        engine, _ = distil(
            self.bed(bed), method, steps=updates, batch=batch, seed=seed, student=student, warmup=0, **settings
        )
        return engine.cast.student

    def measured(self, bed: DigitBed, student: Model, method: Method) -> Numbers:
        """Measurements of a finished student."""
        draws = {"": method.steps} if self.draws is None else self.draws(bed.process)
        return {name: drawn(bed, student, steps) for name, steps in draws.items()}

    def _student(self, bed: DigitBed, seed: int) -> nn.Module | None:
        return bed.fresh(self.width, seed) if self.width else None


@dataclass(frozen=True)
class Question:
    """Is the metric of one arm lower (or higher) than that of another, beyond the spread of the seeds?"""

    better: str
    than: str
    metric: str = "frechet"
    draw: str = ""
    than_draw: str | None = None
    higher: bool = False

    def answer(self, arms: Mapping[str, list[Numbers]]) -> dict[str, Any]:
        """The mean difference over seeds, its 95 % interval, and yes, no or open."""
        there = self.draw if self.than_draw is None else self.than_draw
        pairs = zip(arms[self.better], arms[self.than], strict=True)
        values = [a[self.draw][self.metric] - b[there][self.metric] for a, b in pairs]
        found = seed_interval(torch.tensor(values, dtype=torch.float64)).as_dict()
        low, high = (-found["high"], -found["low"]) if self.higher else (found["low"], found["high"])
        verdict = "yes" if high < 0 else "no" if low > 0 else "open"
        return {**dataclasses.asdict(self), "difference": found, "verdict": verdict}


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is asked here.

    paper: title and arXiv id. says: its claim in a sentence. asks: how it was made small. voxels: asked of shapes that
    the user gives, not of digits.
    """

    paper: str
    says: str
    asks: str
    arms: Mapping[str, Arm]
    questions: tuple[Question, ...]
    rates: tuple[float, ...] = (3e-4, 1e-3)
    momenta: tuple[float, ...] = (0.0, 0.9)
    voxels: bool = False


def drawn(bed: DigitBed, student: Model, steps: Steps) -> dict[str, float]:
    """Measurements of a student's samples; worst of all where they are not finite.

    Raises:
        FewstepError: samples that are not finite.
    """
    labels: Tensor = bed.asked()
    samples = bed.samples(student, steps, labels)
    if not bool(samples.isfinite().all()):
        raise FewstepError("the student's samples are not finite")
    return bed.measures(samples, labels)


def score(numbers: Numbers | None) -> float:
    """What tuning minimises: the mean Frechet distance over the draws."""
    if numbers is None:
        return math.inf
    return sum(draw["frechet"] for draw in numbers.values()) / len(numbers)
