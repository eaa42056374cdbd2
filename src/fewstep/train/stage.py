"""What a training stage gives the loop: modules, a batch sampler, a loss, and how to write the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

Batch = dict[str, Any]


class StageConfig(BaseModel):
    """Settings that every stage has; stages add their own. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("emoji", description="'emoji', a folder of captioned pictures, or an npz")
    size: int = Field(64, ge=8, description="side of the pictures in pixels")
    steps: int = Field(1000, ge=1)
    batch: int = Field(64, ge=1, description="pictures per step and process")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(100, ge=0, description="steps of linear warm-up before the cosine decay")
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on CUDA, float32 on CPU (bfloat16 pays on few CPUs)"
    )
    checkpoint_every: int = Field(200, ge=1)


@dataclass(frozen=True, eq=False)
class Stage:
    """Everything the loop needs, and nothing about how it loops.

    Attributes:
        modules: what is trained, by name; checkpointed and averaged.
        frozen: what the loss needs on the same device, untouched.
        batch: pictures and conditions of one step, drawn from the step's own generator (on the CPU).
        loss: scalar loss and further numbers to show; draws its noise from the same generator.
        save: writes the result (averaged modules) into a folder.
        after: called after each optimizer step, for instance to move a target network; its modules must be
            among `state`.
        state: modules that are checkpointed but neither trained nor averaged.
    """

    modules: Mapping[str, nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[Batch, torch.Generator], tuple[torch.Tensor, dict[str, float]]]
    save: Callable[[Path], None]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    state: Mapping[str, nn.Module] = field(default_factory=dict)
    after: Callable[[int], None] | None = None
