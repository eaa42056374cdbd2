"""Samples from (plan, conditions, seeds) with any diffusers pipeline: what searches and evaluations call."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from typing_extensions import Self

from fewstep.errors import FewstepError, NonFiniteError, nearest
from fewstep.pipelines.calls import Stop, arguments, call
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.sample import Noise


@dataclass
class Generator:
    """Runs plans in a pipeline. One random stream per sample, so that neither batch size nor order changes a picture.

    pipe: any diffusers pipeline that draws from prompts, from class labels or from nothing.
    guidance: `guidance_scale` of the calls (1 = without).
    call: further arguments of the pipeline call (`height`, `width`, `max_sequence_length`, ...).
    batch: samples per call.
    """

    pipe: Any
    guidance: float = 1.0
    call: dict[str, Any] = field(default_factory=dict)
    batch: int = 32

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise FewstepError("batch must be at least 1", value=self.batch)
        self.pipe.set_progress_bar_config(disable=True)
        if hasattr(self.pipe, "encode_prompt"):
            remember_prompts(self.pipe)

    def __call__(
        self, plan: Plan, conditions: Sequence[Any] | None, seeds: Sequence[int], output: str = "image"
    ) -> Tensor:
        """One sample per seed, float32.

        Gradients with respect to the plan's coefficients flow when enabled (one batch at a time fits in memory).

        Args:
            plan: the sampler.
            conditions: prompts or class labels, one per seed; None for an unconditional pipeline, or empty prompts.
            seeds: one per sample; B = len(seeds).
            output: `image` (B, 3, H, W) in [0, 1], for video pipelines (B, T, 3, H, W); `latent`, the state that the
                plan ends in, as the pipeline holds it: (B, C, H, W), packed (B, tokens, C), video (B, C, T, H, W) or
                (B, T, C, H, W); nothing is decoded then.

        Raises:
            FewstepError: no seeds, not one seed per condition, or conditions of another kind.
            NonFiniteError: the pipeline produced NaN.
        """
        if output not in ("image", "latent"):
            raise FewstepError("unknown output", value=output, mend=nearest(output, ("image", "latent")))
        parts = []
        for given, some in self.batches(conditions, seeds):
            runner = Runner.following(plan, some, latent=output == "latent")
            parts.append(self.run(runner, given, some))
        return torch.cat(parts)

    def batches(
        self, conditions: Sequence[Any] | None, seeds: Sequence[int]
    ) -> Iterator[tuple[Sequence[Any] | None, Sequence[int]]]:
        """Conditions and seeds of one call after the other, checked."""
        if not (seeds if conditions is None else conditions):
            what = "the list of seeds is empty" if conditions is None else "the list of prompts or labels is empty"
            raise FewstepError(what, mend="Give at least one.")
        if conditions is not None and len(conditions) != len(seeds):
            raise FewstepError("one seed per prompt or label is needed", value=(len(conditions), len(seeds)))
        for first in range(0, len(seeds), self.batch):
            part = slice(first, first + self.batch)
            yield None if conditions is None else conditions[part], seeds[part]

    def run(self, runner: Runner, conditions: Sequence[Any] | None, seeds: Sequence[int]) -> Tensor:
        """One pipeline call with a scheduler of this module; images or, if it stops early, its last state."""
        given = arguments(self.pipe, conditions, len(seeds), self.guidance, **self.call)
        kept, self.pipe.scheduler = self.pipe.scheduler, runner
        result: Any = None
        try:
            runner.follow(self.pipe)
            with suppress(Stop):
                result = call(
                    self.pipe,
                    num_inference_steps=runner.plan.steps,
                    generator=runner.generators,
                    output_type="pt",
                    **given,
                )
        finally:
            runner.release()
            self.pipe.scheduler = kept
            if result is None:
                self.pipe.maybe_free_model_hooks()
        drawn = (runner.final if result is None else _pictures(result)).float()
        if not bool(drawn.isfinite().all()):
            raise NonFiniteError(
                "the pipeline produced NaN or infinity",
                mend="Run it in float32 or bfloat16, or check the network's weights.",
            )
        return drawn


def _pictures(result: Any) -> Tensor:
    for name in ("images", "frames"):
        if hasattr(result, name):
            return getattr(result, name)
    raise FewstepError("the pipeline returned neither images nor frames", value=type(result).__name__)


class Runner(PlanScheduler):
    """Runs one call: draws fresh noise from the call's streams whatever the pipeline passes, keeps the last state."""

    count: int
    latent: bool
    generators: list[torch.Generator]
    final: Tensor

    @classmethod
    def following(cls, plan: Plan, seeds: Sequence[int], latent: bool = False) -> Self:
        """A runner of the plan with one stream of noise per seed; `latent` stops before the state is decoded."""
        runner = cls.from_plan(plan)
        runner.count, runner.latent, runner.generators = len(seeds), latent, Noise(seeds).generators
        return runner

    def step(  # pipelines inspect the signature
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """One row; the state after the last one is kept in `final`."""
        streams = self.generators  # several pipelines (FLUX, SD3, Wan, DiT) pass none
        if len(sample) == 2 * self.count:  # DiT guides by doubling the states
            streams = [torch.Generator(g.device).set_state(g.get_state()) for g in streams] + streams
        result = super().step(model_output, timestep, sample, streams, return_dict)
        if self.step_index == self.plan.steps:
            state = result.prev_sample if isinstance(result, SchedulerOutput) else result[0]
            self.final = state[: self.count]
            if self.latent:
                raise Stop
        return result


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
    """Per row, the state the network saw and its raw output after guidance, each (K, B, ...); and the end (B, ...)."""

    states: Tensor
    outputs: Tensor
    final: Tensor


def trace(
    generate: Generator,
    plan: Plan,
    conditions: Sequence[Any] | None,
    seeds: Sequence[int],
    along: Trace | None = None,
) -> Trace:
    """States and outputs along a plan; with `along`, the outputs at those states instead of the plan's own.

    Giving the trace of a quantized pipeline to the full-precision one shows the quantization error at every row.
    """
    parts, done = [], 0
    for given, some in generate.batches(conditions, seeds):
        runner = _Tracer.following(plan, some, latent=True)
        runner.forced = None if along is None else along.states[:, done : done + len(some)]
        runner.states, runner.outputs = [], []
        with torch.no_grad():
            final = generate.run(runner, given, some)
        parts.append((torch.stack(runner.states), torch.stack(runner.outputs), final))
        done += len(some)
    states, outputs, finals = zip(*parts, strict=True)
    return Trace(torch.cat(states, 1), torch.cat(outputs, 1), torch.cat(finals))


class _Tracer(Runner):
    """Notes what it is given, and may force the states."""

    forced: Tensor | None
    states: list[Tensor]
    outputs: list[Tensor]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._ensure_index(timestep)
        self.states.append(self._entered(sample)[: self.count].float())
        self.outputs.append(model_output[: self.count].float())
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        following = len(self.states)
        if self.forced is None or following >= self.plan.steps:
            return result
        forced = self.forced[following].to(sample.dtype)
        forced = torch.cat([forced] * (len(sample) // len(forced)))
        return SchedulerOutput(prev_sample=forced) if isinstance(result, SchedulerOutput) else (forced,)
