"""Distil a toy with the very loop of real models: what the tests of methods and the quick comparisons run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.distill.core import Model
from fewstep.distill.engine import Engine, assemble
from fewstep.distill.method import Method
from fewstep.distill.toy import PointNetwork, Toy
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import Progress, accelerator_for, fit
from fewstep.train.stage import StageConfig


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished toy: the student (averaged weights), where the training went, and what it makes.

    distance: energy distance times 1000 of the student's samples from the mixture.
    """

    student: Model
    progress: Progress
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
    """Distil the toy's exact teacher into a small network.

    Args:
        settings: of `fewstep.train.stage.StageConfig`, in place of the method's own (`learning_rate=1e-3`).

    Toys like learning rates far above those of real models: 1e-3 unless given.
    """
    given = {**defaults(method.settings), "learning_rate": 1e-3, "ema": 0.99, **settings}
    config = StageConfig(steps=steps, batch=batch, seed=seed, device="cpu", **given)
    start = toy.start()
    engine = assemble(
        method,
        toy.teacher(),
        start,
        lambda module: module,
        toy.batches(batch),
        (toy.mixture.dimension,),
        student=_copy(toy, start) if method.two_times else None,
    )
    progress = fit(stage_of(engine, config, lambda folder: None), config, out, accelerator_for(config), quiet=True)
    samples = toy.samples(engine.cast.student, method)
    return Trained(engine.cast.student, progress, samples, toy.distance(samples), engine)


def _copy(toy: Toy, start: PointNetwork) -> PointNetwork:
    """The network with two times is the same class: its second input begins at zero."""
    copy = PointNetwork(toy.mixture.dimension, toy.width, toy.horizon)
    copy.load_state_dict(start.state_dict())
    return copy
