"""A few-step student opened once: its plans, its network in full precision and in low bits, and its pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import IdentityError
from fewstep.pipelines import PipelineSampler, backbone_of, backbones_of, identity_of, load_pipeline, plan_of
from fewstep.pipelines.calls import condition_kind
from fewstep.plan import Plan
from fewstep.quant import quantize

FULL = "full precision"


@dataclass(frozen=True, eq=False)
class Student:
    """A pipeline that draws in few steps without guidance.

    spec: a shipped name, or NAME=FOLDER.
    batch: pictures per call.
    """

    spec: str
    batch: int = 50

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.spec.partition("=")[0]

    @cached_property
    def pipe(self) -> Any:
        """The opened pipeline."""
        return load_pipeline(self.spec.partition("=")[2] or self.spec)

    @property
    def of_classes(self) -> bool:
        """Whether it draws classes instead of prompts."""
        return condition_kind(self.pipe) == "class_labels"

    def network(self, scheme: str) -> nn.Module:
        """The network in this scheme."""
        own = backbone_of(self.pipe)
        if scheme == FULL:
            return own
        model = copy.deepcopy(own)
        quantize(model, scheme)
        return model

    def sampler(self, scheme: str) -> PipelineSampler:
        """Draws with the network in this scheme."""
        pipe = copy.copy(self.pipe)
        (name,) = backbones_of(pipe)
        pipe.register_modules(**{name: self.network(scheme)})
        return PipelineSampler(pipe, batch=self.batch)

    def draws_in(self, steps: int) -> bool:
        """Whether it can be asked for so many steps; one that follows a plan of its own has that number alone."""
        try:
            plan_of(self.pipe, steps, guidance_scale=1.0)
        except IdentityError:
            return False
        return True

    def plan(self, steps: int, sampler: PipelineSampler) -> Plan:
        """What the pipeline follows at so many steps, as the plan of the sampler's network."""
        return plan_of(self.pipe, steps, guidance_scale=1.0).replace(identity=identity_of(sampler.pipe, 1.0))


@torch.no_grad()
def drawn(sampler: PipelineSampler, plan: Plan, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures as bytes (n, 3, H, W): an eighth of the memory, and what a file would hold."""
    return (sampler(plan, list(prompts), list(seeds)) * 255).round().to(torch.uint8)
