"""Distil a toy with the very loop of real models: what the tests of methods and the quick comparisons run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.engine import Engine, assemble
from fewstep.distillation.method import Method
from fewstep.testing.digits import DigitBed
from fewstep.testing.toy import Toy
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import TrainingProgress, accelerator_for, fit
from fewstep.train.stage import StageConfig


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished toy: the student (averaged weights), where the training went, and what it makes.

    distance: energy distance times 1000 of the student's samples from the mixture.
    """

    student: Denoiser
    progress: TrainingProgress
    samples: torch.Tensor
    distance: float
    engine: Engine


def train_toy(
    toy: Toy,
    method: Method,
    *,
    steps: int = 500,
    batch: int = 256,
    seed: int = 0,
    out: Path | None = None,
    **settings: Any,
) -> Trained:
    """Distil the toy's exact teacher into a small network; `settings` as in `distil`."""
    engine, progress = distil(toy, method, steps=steps, batch=batch, seed=seed, out=out, **settings)
    samples = toy.samples(engine.networks.student, method)
    return Trained(engine.networks.student, progress, samples, toy.distance(samples), engine)


def distil(
    bed: Toy | DigitBed,
    method: Method,
    *,
    steps: int,
    batch: int = 256,
    seed: int = 0,
    out: Path | None = None,
    student: nn.Module | None = None,
    **settings: Any,
) -> tuple[Engine, TrainingProgress]:
    """Train a small network by a method, with the loop of real models.

    Args:
        student: where it begins; the bed's own start unless given.
        settings: of `fewstep.train.stage.StageConfig`, in place of the method's own (`learning_rate=1e-3`).

    Small networks like learning rates far above those of real models: 1e-3 unless given.
    """
    given = {**defaults(method.settings), "learning_rate": 1e-3, "ema": 0.99, **settings}
    config = StageConfig(steps=steps, batch=batch, seed=seed, device="cpu", **given)
    engine = assembled_engine(bed, method, batch, student)
    return engine, fit(stage_of(engine, config, lambda folder: None), config, out, accelerator_for(config), quiet=True)


def assembled_engine(bed: Toy | DigitBed, method: Method, batch: int, student: nn.Module | None = None) -> Engine:
    """The engine of a bed; its networks take the end of a jump too, by a layer that begins at zero."""
    start = bed.start()
    if student is None and method.two_times:
        student = copy.deepcopy(start)
    return assemble(method, bed.teacher(), start, lambda module: module, bed.batches(batch), bed.shape, student=student)
