"""What a training stage gives the loop: modules, a batch sampler, a loss, and how to write the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fewstep.data import CaptionedImages, load

StageBatch = dict[str, Any]
# Types rather than field arguments, so that a stage that only changes a default keeps the range.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class StageConfig(BaseModel):
    """Settings that every stage has; stages add their own. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("emoji", description="'emoji', a folder of captioned pictures, or an npz")
    size: int = Field(64, ge=8, description="side of the pictures in pixels")
    broken: Literal["stop", "skip"] = Field("stop", description="at a picture that cannot be read")
    steps: Count = 1000
    batch: Count = Field(64, description="pictures per step and process")
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    warmup: int = Field(100, ge=0, description="steps of linear warm-up before the cosine decay")
    clip_norm: Positive = 1.0
    ema: Fraction = 0.999
    ema_widths: tuple[float, ...] = Field(
        (), description="relative widths of averages that are stored, to choose a width afterwards: [0.05, 0.1]"
    )
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on CUDA, float32 on CPU (bfloat16 pays on few CPUs)"
    )
    checkpoint_every: Count = Field(200, description="steps between two checkpoints")
    checkpoint_minutes: Positive = Field(5, description="and so many minutes at most, or twenty times what one takes")
    decay: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    rate_stages: tuple[tuple[Positive, NotNegative], ...] = Field(
        (), description="(share of the steps that it lasts to, multiple of the learning rate), in order"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field("adamw", description="adamw8bit: moments in 8 bits (torchao)")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    trackers: tuple[str, ...] = Field((), description="of accelerate, such as [tensorboard, wandb, mlflow]")
    shard: bool = Field(False, description="several processes: each keeps a share of the weights and moments (FSDP2)")

    def pictures(self, split: str = "train") -> CaptionedImages:
        """The captioned pictures of a split."""
        return load(self.data, split, self.size, self.broken)


Turn = tuple[tuple[str, ...], Callable[[], tuple[torch.Tensor, Mapping[str, Any]]]]
"""Whose optimizers step, and the loss they step on with further numbers."""


@dataclass(frozen=True, eq=False)
class OptimizerGroup:
    """Modules with an optimizer of their own.

    learning_rate: as a multiple of the setting. betas: of Adam. averaged: whether an EMA of it is kept and saved.
    """

    modules: Mapping[str, nn.Module]
    learning_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    averaged: bool = True


@dataclass(frozen=True, eq=False)
class Stage:
    """Everything the loop needs, and nothing about how it loops.

    Attributes:
        modules: what is trained, by name; checkpointed and averaged. One optimizer unless there are `groups`.
        frozen: what the loss needs on the same device, untouched.
        batch: pictures and conditions of one step, drawn from the step's own generator (on the CPU).
        loss: scalar loss and further numbers to show; draws its noise from the same generator.
        save: writes the result (averaged modules) into a folder.
        after: called after each optimizer step, for instance to move a target network; its modules must be
            among `state`.
        state: modules that are checkpointed but neither trained nor averaged.
        groups: where several are trained on losses of their own; together they hold all `modules`.
        turns: (step, generator) -> the updates of a step in order, each computed when it is asked for; one update of
            everything on `batch` and `loss` unless given.
        renewed: called when the parameters of the modules have become other objects, which sharding does.
    """

    modules: Mapping[str, nn.Module]
    batch: Callable[[torch.Generator], StageBatch]
    loss: Callable[[StageBatch, torch.Generator], tuple[torch.Tensor, dict[str, float]]]
    save: Callable[[Path], None]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    state: Mapping[str, nn.Module] = field(default_factory=dict)
    after: Callable[[int], None] | None = None
    groups: Mapping[str, OptimizerGroup] = field(default_factory=dict)
    turns: Callable[[int, torch.Generator], Iterator[Turn]] | None = None
    renewed: Callable[[], None] | None = None

    def all_groups(self) -> Mapping[str, OptimizerGroup]:
        """The optimizer groups; a stage without them is one."""
        return self.groups or {"model": OptimizerGroup(self.modules)}

    def averaged(self) -> dict[str, nn.Module]:
        """The modules whose average is the result."""
        return {name: m for group in self.all_groups().values() if group.averaged for name, m in group.modules.items()}

    def all_turns(self, step: int, generator: torch.Generator) -> Iterator[Turn]:
        """The updates of a step."""
        if self.turns is not None:
            yield from self.turns(step, generator)
        else:
            yield ("model",), lambda: self.loss(self.batch(generator), generator)
