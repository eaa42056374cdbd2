"""Images from (plan, prompts, seeds) with any diffusers text-to-image pipeline: what searches and evaluations call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.plan import Plan
from fewstep.plan.scheduler import PlanScheduler
from fewstep.sample import Noise


@dataclass
class TextToImage:
    """Runs plans in a pipeline. One generator per image, so that neither batch size nor order changes a picture.

    pipe: any diffusers text-to-image pipeline.
    guidance: `guidance_scale` of the calls (1 = without).
    call: further arguments of the pipeline call (`height`, `width`, `max_sequence_length`, ...).
    batch: images per call.
    """

    pipe: Any
    guidance: float = 1.0
    call: dict[str, Any] = field(default_factory=dict)
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise FewstepError("batch must be at least 1", value=self.batch)
        self.pipe.set_progress_bar_config(disable=True)
        remember_prompts(self.pipe)

    def __call__(self, plan: Plan, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W), float32 in [0, 1], for paired prompts and seeds.

        Gradients with respect to the plan's coefficients flow when enabled (one batch at a time fits in memory).

        Raises:
            FewstepError: no prompts, or not one seed per prompt.
            NonFiniteError: the pipeline produced NaN.
        """
        if not prompts:
            raise FewstepError("the prompt list is empty", mend="Give at least one prompt.")
        if len(prompts) != len(seeds):
            raise FewstepError("one seed per prompt is needed", value=(len(prompts), len(seeds)))
        parts = []
        for first in range(0, len(prompts), self.batch):
            part = slice(first, first + self.batch)
            parts.append(self.run(PlanScheduler.from_plan(plan), prompts[part], seeds[part]))
        return torch.cat(parts)

    def run(self, scheduler: PlanScheduler, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One pipeline call with a scheduler of the caller's, images (B, 3, H, W)."""
        call = type(self.pipe).__call__
        if torch.is_grad_enabled():  # pipelines forbid gradients with a decorator; the function below it does not
            call = getattr(call, "__wrapped__", call)
        kept, self.pipe.scheduler = self.pipe.scheduler, scheduler
        try:
            result = call(
                self.pipe,
                prompt=list(prompts),
                num_inference_steps=scheduler.plan.steps,
                guidance_scale=self.guidance,
                generator=Noise(seeds).generators,
                output_type="pt",
                **self.call,
            )
        finally:
            self.pipe.scheduler = kept
        images = result.images.float()
        if not bool(images.isfinite().all()):
            raise NonFiniteError(
                "the pipeline produced NaN or infinity",
                mend="Run it in float32 or bfloat16, or check the network's weights.",
            )
        return images


def remember_prompts(pipe: Any, limit: int = 512_000_000) -> None:
    """Make the pipeline encode each batch of prompts once: a search repeats the same prompts for every candidate.

    limit: bytes of embeddings kept; the oldest go first.
    """
    original = pipe.encode_prompt
    if getattr(original, "remembers", False):
        return
    kept: dict[str, Any] = {}

    @functools.wraps(original)
    def encode(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Tensor) for value in given):
            return original(*args, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if key not in kept:
            with torch.no_grad():
                kept[key] = original(*args, **kwargs)
            while len(kept) > 1 and sum(map(_bytes, kept.values())) > limit:
                kept.pop(next(iter(kept)))
        return kept[key]

    encode.remembers = True  # type: ignore[attr-defined]
    pipe.encode_prompt = encode


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


@dataclass
class Trace:
    """Per row, the state the network saw and its raw output after guidance: each (K, B, ...)."""

    states: Tensor
    outputs: Tensor


def trace(
    generate: TextToImage, plan: Plan, prompts: Sequence[str], seeds: Sequence[int], along: Trace | None = None
) -> Trace:
    """States and outputs along a plan; with `along`, the outputs at those states instead of the plan's own.

    Giving the trace of a quantized pipeline to the full-precision one shows the quantization error at every row.
    """
    parts = []
    for first in range(0, len(prompts), generate.batch):
        part = slice(first, first + generate.batch)
        forced = None if along is None else along.states[:, part]
        scheduler = _TracingScheduler.following(plan, forced)
        with torch.no_grad():
            generate.run(scheduler, prompts[part], seeds[part])
        parts.append((torch.stack(scheduler.seen_states), torch.stack(scheduler.seen_outputs)))
    return Trace(torch.cat([s for s, _ in parts], 1), torch.cat([o for _, o in parts], 1))


class _TracingScheduler(PlanScheduler):
    """Notes what it is given, and may force the states."""

    @classmethod
    def following(cls, plan: Plan, forced: Tensor | None) -> _TracingScheduler:
        scheduler = cls.from_plan(plan)
        assert isinstance(scheduler, cls)
        scheduler.forced = forced
        scheduler.seen_states, scheduler.seen_outputs = [], []
        return scheduler

    forced: Tensor | None
    seen_states: list[Tensor]
    seen_outputs: list[Tensor]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:  # type: ignore[override]
        self.seen_states.append(sample.float())
        self.seen_outputs.append(model_output.float())
        result = super().step(model_output, timestep, sample, **options)
        following = len(self.seen_states)
        if self.forced is None or following >= self.plan.steps:
            return result
        return (self.forced[following].to(sample.dtype),)
