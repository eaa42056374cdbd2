"""A distillation as a stage of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.distillation.engine import Engine
from fewstep.distillation.method import Method
from fewstep.distillation.roles import OptimizerSettings
from fewstep.errors import FewstepError
from fewstep.train.stage import OptimizerGroup, Stage, StageConfig, Turn


def stage_of(
    engine: Engine,
    config: StageConfig,
    save: Callable[[Path], None],
    frozen: Mapping[str, nn.Module] | None = None,
) -> Stage:
    """The stage: its optimizer groups are the student (averaged), and the critic and adversary that the method has.

    frozen: modules that must be on the device, such as the teacher's.

    Raises:
        FewstepError: the training would end before the method's last stage.
    """
    check_length(config, engine.method)
    groups = {}
    for name, module in engine.modules.items():
        tracking = engine.tracking(name)
        betas = tracking.betas or engine.method.settings.betas
        groups[name] = OptimizerGroup({name: module}, tracking.learning_rate, betas, averaged=name == "student")

    def turns(step: int, generator: torch.Generator) -> Iterator[Turn]:
        return engine.turns(step, config.steps, generator)

    def unused(*_: object) -> tuple[torch.Tensor, dict[str, float]]:
        raise NotImplementedError("a distillation has turns")

    return Stage(
        modules=engine.modules,
        batch=lambda generator: {},
        loss=unused,
        save=save,
        frozen=frozen or {},
        state=engine.slow,
        after=engine.after,
        groups=groups,
        turns=turns,
        renewed=engine.renew,
    )


def check_length(config: StageConfig, method: Method) -> None:
    """Refuse a training that would end before the method's last stage.

    Raises:
        FewstepError: it would.
    """
    if config.steps < method.updates:
        raise FewstepError(
            f"this method's stages take {method.updates} updates",
            value=config.steps,
            hint="Train as long, or shorten the stages by the method's options (`every`, `reflow_steps`, ...).",
        )


def defaults(settings: OptimizerSettings) -> dict[str, object]:
    """A method's own settings as those of the loop."""
    return {
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "warmup": settings.warmup,
        "decay": "cosine" if settings.decay else "constant",
        "clip_norm": settings.clip_norm,
        "ema": settings.ema,
        "rate_stages": settings.rates,
        "optimizer": settings.optimizer,
    }
