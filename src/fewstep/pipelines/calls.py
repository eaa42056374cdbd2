"""What pipelines are called with, which network they run, and what they hand to their scheduler."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError, Stop, nearest
from fewstep.pipelines.protocol import Pipeline

CONDITIONS = ("prompt", "class_labels", "batch_size")
"""The argument that tells a pipeline what to draw, by the first of these that its call takes."""


def backbone_of(pipe: Pipeline) -> nn.Module:
    """The denoising network: `transformer` or `unet`.

    Raises:
        FewstepError: the pipeline has neither.
    """
    for name in ("transformer", "unet"):
        model = getattr(pipe, name, None)
        if model is not None:
            return model
    raise FewstepError(f"{type(pipe).__name__} has no `unet` and no `transformer`", value=list(pipe.components))


def backbones_of(pipe: Pipeline) -> dict[str, nn.Module]:
    """Every denoising network by the name of its component: `backbone_of` first, then the one that takes over at low
    noise (Wan 2.2's `transformer_2`), if there is one.

    Raises:
        FewstepError: the pipeline has none.
    """
    first = backbone_of(pipe)
    name = next(name for name in ("transformer", "unet") if getattr(pipe, name, None) is first)
    second = getattr(pipe, f"{name}_2", None)
    return {name: first} if second is None else {name: first, f"{name}_2": second}


def condition_kind(pipe: Pipeline) -> str:
    """What the pipeline draws from: `prompt`, `class_labels`, or `batch_size` where it is unconditional.

    Raises:
        FewstepError: the call takes none of them.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in CONDITIONS:
        if name in accepted:
            return name
    what = f"{type(pipe).__name__} takes neither prompts nor class labels nor a batch size"
    raise FewstepError(what, value=list(accepted), hint="Wrap it in a pipeline whose call has one of them.")


def class_count(pipe: Pipeline) -> int:
    """How many classes a class-conditional pipeline draws: those that it names, or the rows of its network's table."""
    named = getattr(pipe, "labels", None)  # a table may have more rows: DiT's null class is always number 1000
    if named:
        return len(set(named.values()))
    backbone: Any = backbone_of(pipe)
    return int(backbone.config.get("num_embeds_ada_norm") or 10)  # DiT's name for its labels


def arguments(
    pipe: Pipeline, conditions: Sequence[Any] | None, count: int, guidance: float | None = None, **options: Any
) -> dict[str, Any]:
    """The keyword arguments of one call for `count` images.

    conditions: prompts or class labels, as the pipeline takes them; None for empty prompts, or an unconditional
        pipeline.
    guidance: scale that 1 leaves out, whatever the pipeline counts (`counts_from_zero`); not given where the call has
        no `guidance_scale` and it is 1 or None.

    Raises:
        FewstepError: conditions that the pipeline does not take, or an unknown argument.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in options:
        if name not in accepted:
            raise FewstepError(f"{type(pipe).__name__} takes no argument {name!r}", hint=nearest(name, accepted))
    given: dict[str, Any] = {**_condition(pipe, conditions, count, options), **options}
    for name, value in options.items():  # some families demand one negative prompt for each prompt of a list
        if name.startswith("negative_prompt") and isinstance(value, str):
            given[name] = [value] * count
    if guidance is not None:
        if "guidance_scale" in accepted:
            given["guidance_scale"] = max(0.0, guidance - 1) if counts_from_zero(pipe) else guidance
        elif guidance != 1.0:
            raise FewstepError(f"{type(pipe).__name__} knows no guidance", value=guidance, hint="Leave it at 1.")
    return given


def counts_from_zero(pipe: Pipeline) -> bool:
    """Whether the pipeline computes cond + g (cond - uncond), on for every g above 0 (Z-Image): g is then one less than
    the scale of uncond + scale (cond - uncond), and a guidance of 1, "without" elsewhere, is 2.
    """
    twin = copy.copy(pipe)
    vars(twin)["_guidance_scale"] = 0.5
    try:
        return getattr(twin, "do_classifier_free_guidance", False) is True
    except (AttributeError, TypeError):  # it asks for more than the scale
        return False


def _condition(
    pipe: Pipeline, conditions: Sequence[Any] | None, count: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    if _is_embedded(pipe, options):
        if conditions is not None:
            raise FewstepError("prompts and their embeddings exclude each other", hint="Give conditions=None.")
        return {}
    kind = condition_kind(pipe)
    encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder")]
    if kind == "prompt" and encoders and not any(part is not None for part in encoders):
        what = f"this {type(pipe).__name__} has no text encoder, so it cannot read prompts"
        hint = "Pass prompt_embeds (and negative_prompt_embeds where it guides) as arguments of the call."
        raise FewstepError(what, hint=hint)
    if kind == "batch_size":
        if conditions is not None and any(c is not None for c in conditions):
            raise FewstepError(f"{type(pipe).__name__} is unconditional", value=conditions, hint="Give None.")
        return {kind: count}
    wanted = str if kind == "prompt" else int
    if conditions is None:
        return {kind: [""] * count if kind == "prompt" else [0] * count}
    for condition in conditions:
        if not isinstance(condition, wanted) or isinstance(condition, bool):
            what = f"{type(pipe).__name__} takes {'prompts' if kind == 'prompt' else 'class labels'}"
            raise FewstepError(what, value=condition, hint=f"Give one {wanted.__name__} per image.")
    return {kind: list(conditions)}


def _is_embedded(pipe: Pipeline, options: Mapping[str, Any]) -> bool:
    """Whether the caller gives what the pipeline draws from: embeddings of prompts, or all that its call demands."""
    if any(name.startswith("prompt_embeds") and value is not None for name, value in options.items()):
        return True
    accepted = inspect.signature(type(pipe).__call__).parameters
    if any(name in accepted for name in CONDITIONS):
        return False
    needed = {name for name, p in accepted.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    return bool(needed - {"self"}) and needed - {"self"} <= options.keys()


def call(pipe: Pipeline, **given: Any) -> Any:
    """Call the pipeline; with gradients if the caller has them enabled."""
    function = type(pipe).__call__
    if torch.is_grad_enabled():  # pipelines forbid gradients with a decorator; the function below it does not
        function = getattr(function, "__wrapped__", function)
    return function(pipe, **given)


@dataclass
class RecordedCall:
    """What a pipeline handed to its scheduler: a copy of it as it then was, and the extra arguments."""

    scheduler: Any = None
    times: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)


def recorded(pipe: Pipeline, steps: int, until: str = "step", scheduler: Any = None, **options: Any) -> RecordedCall:
    """Run the pipeline up to its first `set_timesteps` or `step`, and note what it passed (own sigmas, mu, eta).

    A twin of the pipeline runs, with a copy of its scheduler (or of the one given): the pipeline stays as it is.
    """
    given = arguments(pipe, None, 1, options.pop("guidance_scale", None), **options)
    twin, work = copy.copy(pipe), copy.deepcopy(pipe.scheduler if scheduler is None else scheduler)
    record = _recording(work, until)
    twin.scheduler = work
    try:
        with torch.no_grad(), suppress(Stop):
            twin(**given, num_inference_steps=steps)
    finally:
        twin.maybe_free_model_hooks()
    return record


def _recording(scheduler: Any, until: str) -> RecordedCall:
    """Make this scheduler note what it is given, and stop."""
    record, set_timesteps, step = RecordedCall(), scheduler.set_timesteps, scheduler.step

    @functools.wraps(set_timesteps)  # pipelines inspect the signature
    def noting_times(*args: Any, **kwargs: Any) -> Any:
        plain = ("num_inference_steps", "device")
        record.times = {k: v for k, v in kwargs.items() if k not in plain and v is not None}
        record.scheduler = copy.deepcopy(scheduler)  # pipelines change settings first: Z-Image sets sigma_min
        for name in ("set_timesteps", "step"):
            delattr(record.scheduler, name)
        if until == "set_timesteps":
            raise Stop
        return set_timesteps(*args, **kwargs)

    @functools.wraps(step)
    def noting_step(*args: Any, **kwargs: Any) -> Any:
        plain = ("model_output", "timestep", "sample", "generator", "return_dict")
        record.step = {k: v for k, v in kwargs.items() if k not in plain and v is not None}
        raise Stop

    scheduler.set_timesteps, scheduler.step = noting_times, noting_step
    return record
