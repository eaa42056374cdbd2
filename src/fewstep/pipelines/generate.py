"""Samples from (plan, conditions, seeds) with any diffusers pipeline: what searches and evaluations call."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from typing_extensions import Self

from fewstep.errors import FewstepError, NonFiniteError, Stop, nearest
from fewstep.executor import Noise
from fewstep.pipelines.caller import Caller, refuse_schedule
from fewstep.pipelines.calls import arguments, call
from fewstep.pipelines.prompts import Prompts
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.plan.noise import passed_over

Conditions = Sequence[Any] | Mapping[str, Any] | None
"""Prompts or class labels, one per sample; embeddings by the names of arguments, (B, ...); or nothing."""


@dataclass
class PipelineSampler:
    """Runs plans in a pipeline, which stays as it is. One random stream per sample: neither batch size nor order
    changes the noise of a picture.

    pipe: any diffusers pipeline that draws from prompts, class labels, embeddings or nothing.
    guidance: `guidance_scale` of the calls (1 = without).
    call: further arguments of the pipeline call (`height`, `width`, `max_sequence_length`, ...). Embeddings
        (`prompt_embeds`, `image_embeds`, ...) in the place of conditions have one row per sample, or one for all.
    batch: samples per call.
    noise_like: a plan; others add what it adds at the nearest times (`plan.noise`), to be compared seed by seed.
    """

    pipe: Pipeline
    guidance: float = 1.0
    call: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    noise_like: Plan | None = None
    prompts: Prompts = field(default_factory=Prompts, repr=False, compare=False)
    """Prompts already encoded; generators of one pipeline may share them."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise FewstepError("batch must be at least 1", value=self.batch)

    def __call__(
        self, plan: Plan, conditions: Sequence[Any] | None, seeds: Sequence[int], output: str = "image"
    ) -> Tensor:
        """One sample per seed, float32.

        Gradients flow where they are asked for: coefficients of the plan, or tensors in `call`, that require them.

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
            raise FewstepError("unknown output", value=output, hint=nearest(output, ("image", "latent")))
        parts = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and (plan.learned or _learned(self.call))):
            for given, some in self.batches(conditions, seeds):
                runner = PlanRunner.following(plan, some, latent=output == "latent")
                runner.passed = () if self.noise_like is None else passed_over(plan, self.noise_like)
                parts.append(self.run(runner, given, some))
        return torch.cat(parts)

    def batches(
        self, conditions: Sequence[Any] | None, seeds: Sequence[int]
    ) -> Iterator[tuple[Conditions, Sequence[int]]]:
        """Conditions and seeds of one call after the other, checked."""
        if not (seeds if conditions is None else conditions):
            what = "the list of seeds is empty" if conditions is None else "the list of prompts or labels is empty"
            raise FewstepError(what, hint="Give at least one.")
        if conditions is not None and len(conditions) != len(seeds):
            raise FewstepError("one seed per prompt or label is needed", value=(len(conditions), len(seeds)))
        for first in range(0, len(seeds), self.batch):
            part = slice(first, first + self.batch)
            embedded = {name: _rows(name, value, part, len(seeds)) for name, value in self._embedded().items()}
            yield (embedded or None) if conditions is None else conditions[part], seeds[part]

    def _embedded(self) -> dict[str, Tensor]:
        """Arguments of the call that have a row per sample."""
        named = {n: v for n, v in self.call.items() if "embed" in n or "prompt" in n}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def changed(self, **settings: Any) -> PipelineSampler:
        """A generator of the same pipeline with other settings, which shares the encoded prompts."""
        return dataclasses.replace(self, **settings)

    def run(self, runner: PlanRunner, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
        """One pipeline call with a scheduler of this module; images or, if it stops early, its last state.

        Raises:
            IdentityError: `call` asks for a schedule of its own, or for a size that the plan was not made for.
        """
        with self._serving(runner) as pipe:
            return self._run(pipe, runner, conditions, seeds)

    def _run(self, pipe: Pipeline, runner: PlanRunner, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
        embedded = dict(conditions) if isinstance(conditions, Mapping) else {}
        words = None if conditions is None or isinstance(conditions, Mapping) else conditions
        given = arguments(pipe, words, len(seeds), self.guidance, **{**self.call, **embedded})
        refuse_schedule(runner.plan, type(pipe), self.call)
        self.prompts.tell_lost(pipe, words or (), self.call)
        result: Any = None
        try:
            with suppress(Stop):
                result = call(
                    pipe,
                    num_inference_steps=runner.call_steps,
                    generator=runner.generators,
                    output_type="pt",
                    **given,
                )
        finally:
            runner.release()
            if result is None:
                pipe.maybe_free_model_hooks()
        drawn = (runner.final if result is None else _pictures(result)).float()
        if not bool(drawn.isfinite().all()):
            raise NonFiniteError(
                "the pipeline produced NaN or infinity",
                hint="Run it in float32 or bfloat16, or check the network's weights.",
            )
        return drawn

    @contextmanager
    def _serving(self, runner: PlanRunner) -> Iterator[Pipeline]:
        """The pipeline for one call: its twin with a scheduler, a progress bar and a memory of prompts of its own.

        A pipeline whose methods were replaced (One More Step) serves itself: they are bound to it.
        """
        kept = self.pipe.scheduler
        runner.remember(kept)
        if any(map(inspect.isfunction, vars(self.pipe).values())):
            vars(self.pipe)["scheduler"] = runner
            try:
                yield self.pipe
            finally:
                vars(self.pipe)["scheduler"] = kept
            return
        twin = copy.copy(self.pipe)
        vars(twin)["scheduler"] = runner
        twin.set_progress_bar_config(disable=True)
        if hasattr(twin, "encode_prompt"):
            vars(twin)["encode_prompt"] = self.prompts.encoding(twin)
        yield twin


def _rows(name: str, value: Tensor, part: slice, count: int) -> Tensor:
    """The rows of one call; a single one serves all samples."""
    if len(value) not in (1, count):
        raise FewstepError(f"{name} needs one row per sample, or one for all", value=len(value), hint=f"Give {count}.")
    return value.expand(count, *value.shape[1:])[part]


def _learned(call: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in call.values())


def _pictures(result: Any) -> Tensor:
    for name in ("images", "frames"):
        if hasattr(result, name):
            return getattr(result, name)
    raise FewstepError("the pipeline returned neither images nor frames", value=type(result).__name__)


Watch = Callable[[int, Tensor, Tensor], Tensor | None]
"""(k, state (B, ...), raw output after guidance (B, ...)) -> the state that row k + 1 starts from, None for the plan's.

Called before each row of a call, with what the network saw and gave; `Stop(state)` ends the call there.
"""


Correct = Callable[[int, Tensor, Tensor], Tensor]
"""(k, state (B, ...), raw output after guidance (B, ...)) -> the output that row k goes on with."""


class PlanRunner(PlanScheduler):
    """Runs one call: draws fresh noise from the call's streams whatever the pipeline passes, keeps the last state."""

    count: int
    latent: bool
    watch: Watch | None
    correct: Correct | None = None
    generators: list[torch.Generator]
    final: Tensor
    passed: Sequence[int] = ()  # draws of each stream that every row leaves out

    @classmethod
    def following(cls, plan: Plan, seeds: Sequence[int], latent: bool = False, watch: Watch | None = None) -> Self:
        """A runner of the plan with one stream of noise per seed; `latent` stops before the state is decoded."""
        runner = cls.from_plan(plan)
        runner.count, runner.generators = len(seeds), Noise(seeds).generators
        runner.latent, runner.watch = latent, watch
        return runner

    def check(self, caller: Caller) -> None:
        """Any pipeline may run any plan here: references run the plans of others, and calls are checked before."""

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
        forced = self._watched(model_output, timestep, sample)
        self._pass_over(timestep, sample)
        if self.correct is not None:
            self._ensure_index(timestep)
            model_output = self.correct(self.step_index or 0, self._entered(sample), model_output)
        streams = self.generators  # several pipelines (FLUX, SD3, Wan, DiT) pass none
        if len(sample) == 2 * self.count:  # DiT guides by doubling the states
            streams = [torch.Generator(g.device).set_state(g.get_state()) for g in streams] + streams
        result = super().step(model_output, timestep, sample, streams, return_dict)
        if self.step_index == self.plan.steps:
            state = result.prev_sample if isinstance(result, SchedulerOutput) else result[0]
            self.final = state[: self.count]
            if self.latent:
                raise Stop
        if forced is None:
            return result
        forced = torch.cat([forced.to(sample.dtype)] * (len(sample) // len(forced)))
        return SchedulerOutput(prev_sample=forced) if isinstance(result, SchedulerOutput) else (forced, *result[1:])

    def _pass_over(self, timestep: Any, sample: Tensor) -> None:
        if not self.passed:
            return
        self._ensure_index(timestep)
        shape, width = (self.count, *sample.shape[1:]), torch.promote_types(sample.dtype, torch.float32)
        for _ in range(self.passed[self.step_index or 0]):
            randn_tensor(shape, generator=self.generators, device=sample.device, dtype=width)

    def _watched(self, output: Tensor, timestep: Any, sample: Tensor) -> Tensor | None:
        if self.watch is None:
            return None
        self._ensure_index(timestep)
        try:
            return self.watch(self.step_index or 0, self._entered(sample)[: self.count], output[: self.count])
        except Stop as stop:
            self.final = stop.args[0]
            raise
