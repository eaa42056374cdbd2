"""Few-step training of masked models as a stage of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.distillation.didi_instruct import TokenEngine
from fewstep.distillation.sdtt import SelfDistillationEngine
from fewstep.train.stage import OptimizerGroup, Stage


def token_stage(
    engine: TokenEngine | SelfDistillationEngine,
    steps: int,
    save: Callable[[Path], None] = lambda folder: None,
    frozen: Mapping[str, nn.Module] | None = None,
    adversary_rate: float = 1.0,
) -> Stage:
    """The stage: the student is averaged; a discriminator has an optimizer of its own.

    Args:
        engine: with its modules; what changes between rounds (SDTT's teacher) is checkpointed.
        steps: of the training.
        save: writes the result.
        frozen: modules that must be on the device.
        adversary_rate: learning rate of the discriminator, as a multiple of the student's.
    """
    groups = {
        name: OptimizerGroup({name: module}, adversary_rate if name == "adversary" else 1.0, averaged=name == "student")
        for name, module in engine.modules.items()
    }

    def unused(*_: object) -> tuple[torch.Tensor, dict[str, float]]:
        raise NotImplementedError("a distillation has turns")

    state = {"teacher": engine.teacher_module} if isinstance(engine, SelfDistillationEngine) else {}
    return Stage(
        modules=engine.modules,
        batch=lambda generator: {},
        loss=unused,
        save=save,
        frozen=frozen or {},
        state=state,
        groups=groups,
        turns=lambda step, generator: engine.turns(step, steps, generator),
    )
