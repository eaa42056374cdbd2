"""A claim: ways to train at equal cost, and questions about them that numbers answer (how: `protocol.py`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.method import Method
from fewstep.errors import FewstepError
from fewstep.jobs.distill.cost import passes_of
from fewstep.metrics.intervals import seed_interval
from fewstep.process import Process
from fewstep.testing.digits import DigitBed
from fewstep.testing.training import assembled_engine, distil

Make = Callable[[Process, int], Method]
"""(process, updates of the training) -> the method, its stages laid over these updates."""

SETS = 4
"""Sets of samples that are drawn of every student."""

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
    spent:
        Passes of the budget that are gone before the first update, such as those of a store of its own.
    setting:
        (learning rate, momentum) that the arm is about; it is not tuned then.
    """

    make: Make
    draws: Callable[[Process], Mapping[str, Chain]] | None = None
    bed: Callable[[DigitBed], DigitBed] = lambda bed: bed
    width: int = 0
    share: float = 1.0
    spent: int = 0
    setting: tuple[float, float] | None = None

    def passes(self, bed: DigitBed, batch: int, steps: int = 4) -> float:
        """Samples through networks per update of the student; backward counts two more."""
        engine = assembled_engine(self.bed(bed), self.make(bed.process, steps), batch, self._student(bed, 0))
        return passes_of(engine, bed.network, steps)

    def train(self, bed: DigitBed, updates: int, batch: int, seed: int, **settings: Any) -> Numbers:
        """Train once and measure every draw; the learning rate falls to zero along a cosine."""
        method = self.make(bed.process, max(1, updates))
        if not self.share:
            return self.measured(bed, bed.teacher(), method, seed)
        student = self._trained(bed, method, updates, batch, seed, **settings)
        return self.measured(bed, student, method, seed)

    def untrained(self, bed: DigitBed) -> Numbers:
        """The teacher in the steps of this arm."""
        return self.measured(bed, bed.teacher(), self.make(bed.process, 1000))

    def _trained(self, bed: DigitBed, method: Method, updates: int, batch: int, seed: int, **settings: Any) -> Denoiser:
        """A finished student."""
        betas = (settings.pop("momentum", method.settings.betas[0]), method.settings.betas[1])
        method = dataclasses.replace(method, settings=dataclasses.replace(method.settings, betas=betas))
        student = self._student(bed, seed)
        engine, _ = distil(
            self.bed(bed), method, steps=updates, batch=batch, seed=seed, student=student, warmup=0, decay="cosine",
            **settings,
        )  # fmt: skip
        return engine.networks.student

    def measured(self, bed: DigitBed, student: Denoiser, method: Method, seed: int = 0) -> Numbers:
        """Measurements of a finished student; every seed of training draws samples of its own."""
        draws = {"": method.steps} if self.draws is None else self.draws(bed.process)
        return {name: drawn(bed, student, steps, seed) for name, steps in draws.items()}

    def _student(self, bed: DigitBed, seed: int) -> nn.Module | None:
        return bed.fresh(self.width, seed) if self.width else None


class Real(Arm):
    """No student: real samples of the classes that are asked for, from the part that networks learn from.

    Their distance from the held-out part is what no student can be expected to fall below.
    """

    def train(self, bed: DigitBed, updates: int, batch: int, seed: int, **settings: Any) -> Numbers:
        """Measurements of real samples."""
        return {"": averaged([real(self.bed(bed), SETS * seed + k) for k in range(SETS)])}


def real(bed: DigitBed, seed: int = 0) -> dict[str, float]:
    """Measurements of real samples of the bed, drawn anew for the classes that evaluations ask for."""
    data, labels, generator = bed.data, bed.asked(), torch.Generator().manual_seed(seed)
    of_class = {int(c): (data.train_labels == c).nonzero().flatten() for c in labels.unique()}
    rows = [of_class[int(c)][int(torch.randint(len(of_class[int(c)]), (1,), generator=generator))] for c in labels]
    return bed.measures(data.train[torch.stack(rows)], labels)


REAL = "real samples"
"""The arm that every claim has without naming it."""


@dataclass(frozen=True)
class Question:
    """Is the metric of one arm lower (or higher) than that of another, beyond the spread of the seeds?

    beyond:
        By so much at least (premises: what is smaller cannot be repaired visibly).
    premise:
        Name of one of the claim's premises, without which the question says nothing about the paper.
    """

    better: str
    than: str
    metric: str = "frechet"
    draw: str = ""
    than_draw: str | None = None
    higher: bool = False
    beyond: float = 0.0
    premise: str = ""

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(arm, draw) of both."""
        return (self.better, self.draw), (self.than, self.draw if self.than_draw is None else self.than_draw)

    def answer(self, better: Sequence[Numbers], than: Sequence[Numbers]) -> dict[str, Any]:
        """The mean difference over seeds, its 95 % interval, and yes, no or open."""
        (_, here), (_, there) = self.sides
        pairs = zip(better, than, strict=False)
        values = [a[here][self.metric] - b[there][self.metric] for a, b in pairs]
        found = seed_interval(torch.tensor(values, dtype=torch.float64)).as_dict()
        low, high = (-found["high"], -found["low"]) if self.higher else (found["low"], found["high"])
        verdict = "yes" if high < -self.beyond else "no" if low > 0 else "open"
        return {**dataclasses.asdict(self), "difference": found, "verdict": verdict}

    def room(self) -> Question | None:
        """What must be true of the untreated arm: that real samples are better by the same metric."""
        if self.than == REAL or self.metric in ("straightness", "error", "nearest", "coverage"):
            return None
        (_, _), (than, draw) = self.sides
        return Question(REAL, than, self.metric, "", draw, self.higher)


@dataclass(frozen=True)
class Claim:
    """What a paper says, and how it is asked here.

    paper: title and arXiv id. says: its claim in a sentence. asks: how it was made small. voxels: asked of shapes that
    the user gives, not of digits. rates, momenta: where tuning begins; it goes on where the best lies at an edge.
    premises: the effect that the method repairs, as questions about untreated arms. fixed: the rates are the question,
    so that tuning tries all of them and no more. version: raised where an arm has come to mean something else, so that
    earlier results of its claim are not taken for it.
    """

    paper: str
    says: str
    asks: str
    arms: Mapping[str, Arm]
    questions: tuple[Question, ...]
    rates: tuple[float, ...] = (3e-4, 1e-3)
    momenta: tuple[float, ...] = (0.0, 0.9)
    voxels: bool = False
    premises: Mapping[str, Question] = field(default_factory=dict)
    fixed: bool = False
    version: int = 1

    def all_arms(self) -> dict[str, Arm]:
        """The arms, and real samples."""
        any_arm = next(iter(self.arms.values()))
        return {REAL: Real(any_arm.make, share=0.0), **self.arms}

    def all_questions(self) -> tuple[Question, ...]:
        """The questions with their premises."""
        rooms = [room for question in self.questions if (room := question.room()) is not None]
        return (*self.questions, *self.premises.values(), *rooms)


def drawn(bed: DigitBed, student: Denoiser, steps: Chain, seed: int = 0) -> dict[str, float]:
    """Measurements of a student's samples, averaged over sets of them: one set alone is as noisy as the training.

    Raises:
        FewstepError: samples that are not finite.
    """
    labels: Tensor = bed.asked()
    found = []
    for k in range(SETS):
        samples = bed.samples(student, steps, labels, 7 + SETS * seed + k)
        if not bool(samples.isfinite().all()):
            raise FewstepError("the student's samples are not finite")
        found.append(bed.measures(samples, labels))
    return averaged(found)


def averaged(sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Every measurement's mean over sets."""
    return {name: sum(one[name] for one in sets) / len(sets) for name in sets[0]}


def score(numbers: Numbers | None, draw: str | None = None, metric: str = "frechet") -> float:
    """What tuning minimises: the metric of a draw, or its mean over all draws."""
    if numbers is None:
        return math.inf
    values = [entry[metric] for name, entry in numbers.items() if draw in (None, name)]
    return sum(values) / len(values)
