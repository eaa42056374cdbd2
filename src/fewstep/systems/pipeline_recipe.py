"""What every recipe that runs a pipeline can be told, and how it opens it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from fewstep.models import SHIPPED
from fewstep.pipelines import load_pipeline
from fewstep.recipes.base import Recipe
from fewstep.runs.environment import best_device
from fewstep.solvers import FACTS, SOLVERS

Conditions = str | list[str] | list[int]
"""A prompt set by name, prompts, or class labels; `auto` fits the pipeline (every label in turn, or prompts)."""

PLAIN = [n for n in SOLVERS if FACTS[n].calls == 1 and not FACTS[n].stochastic]
"""Solvers that follow any grid, call once per time and draw no noise."""


def one_of(name: str, known: Collection[str]) -> str:
    """The name, for validators.

    Raises:
        ValueError: it is not known.
    """
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


PlainSolver = Annotated[str, AfterValidator(lambda name: one_of(name, PLAIN))]
"""The name of one of `PLAIN`."""


class PipelineRecipe(Recipe):
    """A pipeline, how it is called, and where."""

    model: str
    """Shipped name, diffusers folder, or hub id."""
    steps: int = Field(4, ge=1, le=1000)
    """Network evaluations."""
    guidance: float = Field(1.0, ge=0)
    """`guidance_scale` of the pipeline call; 1 is without."""
    call: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the pipeline call: height, width, ..."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch: int = Field(32, ge=1)
    results: str = ""
    """A JSON file that also receives the numbers, besides the run directory."""

    @property
    def place(self) -> str:
        """The device that `auto` stands for."""
        return best_device() if self.device == "auto" else self.device

    def prompts(self, conditions: Conditions, held_out: bool) -> Conditions:
        """What `auto` stands for: the calibration or the evaluation prompts."""
        if conditions != "auto":
            return conditions
        split = "emoji" if self.model in SHIPPED else "general"
        return f"{split}:evaluation" if held_out else f"{split}:calibration"

    def opened(self) -> Any:
        """The pipeline on its device; no weight takes a gradient (searches differentiate schedules)."""
        pipe = load_pipeline(self.model, dtype=getattr(torch, self.dtype)).to(self.place)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        return pipe
