"""YONOS-SR: the model of an easier super-resolution teaches the harder one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from claims.claim import Arm, Claim, Numbers, Question
from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.core import Batch
from fewstep.distillation.method import method
from fewstep.distillation.part import replaced
from fewstep.distillation.parts import data_velocity, instantaneous_velocity
from fewstep.testing.digits import GROUPS, PIXELS, DigitBed, DigitNetwork
from fewstep.testing.training import distil

EASY, HARD, TEACHER = 2, 4, 2000


def blurred(digits: Tensor, factor: int) -> Tensor:
    """Digits (B, 64) as they look after shrinking by a factor."""
    small = F.avg_pool2d(digits.unflatten(1, (1, 8, 8)), factor)
    return F.interpolate(small, scale_factor=factor).flatten(1)


class Sharpener(DigitNetwork):
    """A network of digits that sees a blurred one beside the noisy one."""

    def __init__(self, width: int) -> None:
        super().__init__(width, size=2 * PIXELS)

    def forward(self, x: Tensor, time: Tensor, low: Tensor) -> Tensor:  # type: ignore[override]
        """Raw output (B, 64)."""
        return super().forward(torch.cat([x, low], 1), time)[:, :PIXELS]


class ScaleBed(DigitBed):
    """Digits with blurred ones as conditions: those of the harder task, and of the easier one for the teacher."""

    seen: int = HARD

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (PIXELS,)

    def fresh(self, width: int, seed: int = 0) -> DigitNetwork:
        """A student with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Sharpener(width)

    def batches(self, size: int) -> Callable[[torch.Generator], Batch]:
        """Real digits and both of their blurred ones."""
        train = self.data.train

        def batch(generator: torch.Generator) -> Batch:
            clean = train[torch.randint(len(train), (size,), generator=generator)]
            given: Condition = {"low": blurred(clean, self.seen), "teacher.low": blurred(clean, EASY)}
            return Batch(size, self.shape, clean, given)

        return batch

    @torch.no_grad()
    def samples(self, student: Denoiser, steps: Chain, labels: Tensor, seed: int = 7) -> Tensor:
        """Sharpened held-out digits, several times over."""
        generator, truth = torch.Generator().manual_seed(seed), self.data.test.repeat(GROUPS, 1)
        noise = torch.randn(truth.shape, generator=generator)
        return steps.sample(student, noise, {"low": blurred(truth, HARD)}, generator)

    def measures(self, samples: Tensor, labels: Tensor) -> dict[str, float]:
        """Those of digits, and `error`: root mean square difference from the digit that was blurred."""
        away = (samples - self.data.test.repeat(GROUPS, 1)).square().mean().sqrt()
        return super().measures(samples, labels) | {"error": float(away)}


class EasyBed(ScaleBed):
    """The easier task alone."""

    seen = EASY


@lru_cache(maxsize=4)
def scaled(bed: DigitBed) -> ScaleBed:
    """The bed with a teacher of the easier task."""
    network = ScaleBed(bed.data, bed.network, bed.judge).fresh(bed.network.width)
    easy = EasyBed(bed.data, network, bed.judge)
    found, _ = distil(easy, direct(bed.process, TEACHER), steps=TEACHER, student=network, decay="cosine")
    return ScaleBed(bed.data, found.networks.student.network.eval().requires_grad_(False), bed.judge)  # type: ignore


class Scaled(Arm):
    """An arm on the harder task."""

    def passes(self, bed: DigitBed, batch: int, steps: int = 4) -> float:
        """As of any arm."""
        return super().passes(scaled(bed), batch, steps)

    def train(self, bed: DigitBed, updates: int, batch: int, seed: int, **settings: Any) -> Numbers:
        """As of any arm."""
        return super().train(scaled(bed), updates, batch, seed, **settings)


def distilled(process, updates):
    """The preset."""
    return method("yonos", process)


def direct(process, updates):
    """The same regression, of the data."""
    samples = method("yonos", process)
    term = replaced(samples.terms["easier"], target=instantaneous_velocity(data_velocity))
    return dataclasses.replace(samples, terms={"data": term})


def draws(process):
    """Deterministic steps."""
    return {f"{n} steps": evenly(process, n, fresh=0.0) for n in (1, 2, 4)}


CLAIM = Claim(
    paper="YONOS-SR (arXiv 2401.17258)",
    says="A model of an easier super-resolution is a better teacher of the harder one than the data, most so in "
    "one step.",
    asks="Digits from 2x2 pixels, the teacher from 4x4, equal passes: from random weights, from the teacher's weights "
    "(which explain part of the gain), and distilled. `error` is the root mean square difference from the digit; no "
    "decoder is tuned.",
    arms={
        "untrained": Scaled(direct, draws, share=0.0),
        "direct": Scaled(direct, draws, width=128),
        "direct, easier start": Scaled(direct, draws),
        "scale distilled": Scaled(distilled, draws),
    },
    questions=(
        *(Question("scale distilled", "direct, easier start", m, "1 steps") for m in ("error", "frechet")),
        *(Question("scale distilled", "direct", m, "1 steps") for m in ("error", "frechet")),
        *(Question("scale distilled", "direct, easier start", draw=f"{n} steps") for n in (2, 4)),
        Question("direct, easier start", "direct", "error", "1 steps"),
    ),
)
