"""diffusers pipelines in and out: open, read the plan, attach a plan, save. Nothing here knows a model by name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import FewstepError, IdentityError, PlanError, nearest
from fewstep.files import check_free, write_folder
from fewstep.pipelines.adapters import adapters_of, base_only, check_adapters, load_adapters, save_adapters
from fewstep.pipelines.caller import SCHEDULE, shift_of, step_counts
from fewstep.pipelines.calls import backbone_of, recorded
from fewstep.pipelines.following import refuse_unfit
from fewstep.pipelines.identity import identity_of
from fewstep.pipelines.low_bit.stream import read_low_bit
from fewstep.pipelines.places import class_of, options_for, place_of
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.quant.consistency import check_saved_right


def load_pipeline(model: str | Path, *, scheme: str = "", **options: Any) -> Pipeline:
    """Open a diffusers pipeline: a folder, a shipped name (`emoji-student`), or a hub id; safetensors only.

    Low-bit backbones written by fewstep load as they are, and a stored plan is checked against its network. A folder
    that has nothing but a variant (`fp16`) is opened as that, with a warning. A folder of a class that diffusers does
    not have is opened by the package that brings the class (entry points `fewstep.pipelines`).

    Args:
        model: folder, run directory, shipped name or hub id.
        scheme: such as `w4a8`: the network that denoises is rounded to it layer by layer while its file is read, so
            that its full precision is never in memory. Of folders without adapters and plan.
        options: passed to `DiffusionPipeline.from_pretrained`; `dtype` is float32 without a GPU unless given.

    Raises:
        FewstepError: nothing can be opened there, a single file, pickled weights, or what no folder is quantized with
            while it is read.
        IdentityError: the stored plan belongs to another network.
    """
    from fewstep.zoo import BASES, SHIPPED, shipped

    if not torch.cuda.is_available():  # half precision is slow on processors, and many layers refuse it
        options.setdefault("dtype", torch.float32)
    place = place_of(model)
    options, opener = options_for(place, options), class_of(place)
    if scheme:
        options |= read_low_bit(place, scheme, options)
    try:
        with _quiet():
            pipe = opener.from_pretrained(place if place.exists() else str(model), **options)
    except FewstepError:
        raise
    except Exception as error:  # diffusers raises many kinds; users need one sentence
        raise FewstepError(
            f"cannot open the pipeline {str(model)!r}: {error}",
            hint=f"Give a diffusers folder, a hub id, or one of {', '.join(SHIPPED)}.",
        ) from error
    pipe.set_progress_bar_config(disable=True)
    load_adapters(pipe, place)
    if str(model) in BASES:
        load_adapters(pipe, shipped(str(model)))
        fuse_adapters(pipe)
    if isinstance(pipe.scheduler, PlanScheduler):
        attach(pipe, pipe.scheduler.plan, pipe.scheduler.config.get("adapters") or {})
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for the half second that opening takes; the caller's setting comes back."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_pipeline(pipe: Pipeline, folder: str | Path, overwrite: bool = False) -> None:
    """Write the pipeline as a diffusers folder, whole or not at all; safetensors only.

    LoRA adapters of the backbone go beside it, into `adapters/`; the backbone itself is the base model.

    overwrite: replace a folder that fewstep wrote. Files of others are never replaced.

    Raises:
        FewstepError: something is there that may not be replaced; adapters on a text encoder, or on a low-bit backbone;
            low-bit layers that a folder cannot hold.
    """
    check_free(folder, overwrite)
    pipe = _keeps_scheduler(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            check_saved_right(part, name)
            if any(tensor.is_meta for tensor in part.state_dict().values() if isinstance(tensor, torch.Tensor)):
                hint = "Bring them back first: pipe.remove_all_hooks()."
                raise FewstepError("weights that are offloaded cannot be written", value=name, hint=hint)
    if adapters_of(pipe, active=False) and identity_of(pipe).quantization != "none":
        raise FewstepError(
            "adapters on a low-bit backbone cannot be stored", hint="Fuse them (pipe.fuse_lora) before quantizing."
        )

    pipe = exchanged(pipe, _unused_tokenizers(pipe))

    def fill(draft: Path) -> None:
        with base_only(pipe):
            pipe.save_pretrained(draft, safe_serialization=True)
        save_adapters(pipe, draft)

    write_folder(folder, fill, over="ours" if overwrite else "nothing")


def _unused_tokenizers(pipe: Pipeline) -> dict[str, Any]:
    """Copies of the tokenizers, and of processors with one inside, without the padding and the cut of their last use.

    Fast tokenizers keep both as state that `save_pretrained` writes, while every call sets them anew.
    """
    copies = {}
    for name, part in pipe.components.items():
        if hasattr(part, "backend_tokenizer") or hasattr(getattr(part, "tokenizer", None), "backend_tokenizer"):
            copies[name] = unused = copy.deepcopy(part)
            tokenizer = getattr(unused, "tokenizer", unused)
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
            for side in ("padding_side", "truncation_side"):  # else known from that state alone
                tokenizer.init_kwargs[side] = getattr(tokenizer, side)
    return copies


def _keeps_scheduler(pipe: Pipeline) -> Pipeline:
    """The pipeline, or its twin: a `DDIMPipeline` would put its own scheduler in place of a plan when opened."""
    from diffusers import DDIMPipeline, DDPMPipeline

    if isinstance(pipe, DDIMPipeline) and isinstance(pipe.scheduler, PlanScheduler):
        return DDPMPipeline(**pipe.components)
    return pipe


def attach(
    pipe: Pipeline, plan: Plan, adapters: Mapping[str, Any] | None = None, guidance: float | None = None
) -> None:
    """Make the pipeline follow a plan, now and in every later call, checked against what the plan belongs to.

    What the plan leaves open becomes what the pipeline is: from now on it belongs to this network and quantization.

    Args:
        pipe: any diffusers pipeline.
        plan: its new sampler.
        adapters: the LoRA adapters that the plan needs, as `fewstep.pipelines.adapters.adapters_of` tells them; those
            that are active now unless given. Adapters loaded later may come and go.
        guidance: the only guidance scale that calls may have from now on; that of the plan unless given.

    Raises:
        IdentityError: the plan belongs to another model, quantization or guidance.
    """
    found = identity_of(pipe, guidance)
    plan.check(found)
    refuse_unfit(plan, pipe)
    known = {name: value for name, value in vars(plan.identity).items() if value is not None}
    scheduler = PlanScheduler.from_plan(plan.replace(identity=dataclasses.replace(found, **known)))
    if isinstance(pipe.scheduler, PlanScheduler):
        pipe.scheduler.release()
    scheduler.remember(pipe.scheduler)
    scheduler.register_to_config(adapters=dict(adapters_of(pipe) if adapters is None else adapters))
    pipe.register_modules(scheduler=scheduler)


def fuse_adapters(pipe: Pipeline) -> None:
    """Add the LoRA adapters that are on into the backbone's weights and take all off, in place; nothing if there are
    none. A stored plan of the base with these adapters becomes one of the new weights.

    Raises:
        IdentityError: the stored plan belongs to adapters that are not on.
    """
    if not adapters_of(pipe, active=False):
        return
    stored = pipe.scheduler.plan if isinstance(pipe.scheduler, PlanScheduler) else None
    if stored is not None:
        check_adapters(pipe, pipe.scheduler.config.get("adapters") or {})
    model: Any = backbone_of(pipe)
    active = list(adapters_of(pipe))
    if active:
        model.fuse_lora(adapter_names=active)
    model.unload_lora()
    if stored is not None:
        attach(pipe, stored.replace(identity=identity_of(pipe, stored.identity.guidance)), {})


def plan_of(pipe: Pipeline, steps: int, **call: Any) -> Plan:
    """The plan that the pipeline follows today at this many steps, read out of its scheduler.

    Runs the pipeline up to its first `scheduler.step`, so that whatever the pipeline itself passes (own sigmas, mu,
    eta) is in the plan.

    Args:
        pipe: any diffusers pipeline.
        steps: inference steps, as users would ask.
        call: arguments of the pipeline call (`guidance_scale`, `height`, ...).
    """
    if isinstance(pipe.scheduler, PlanScheduler):
        plan = pipe.scheduler.plan
        if steps not in step_counts(plan):
            hint = f"Use {pipe.scheduler.call_steps} steps, or a pipeline that still has its own scheduler."
            raise IdentityError(f"the pipeline's stored plan has {plan.steps} steps", value=steps, hint=hint)
        return plan
    record = recorded(pipe, steps, **call)
    plan = plan_of_scheduler(record.scheduler, steps, set_timesteps=record.times, step=record.step)
    known: dict[str, Any] = {"call": {name: _plain(call[name]) for name in SCHEDULE if call.get(name) is not None}}
    if record.scheduler.config.get("use_dynamic_shifting") and record.times.get("mu") is not None:
        known["shift"] = shift_of(record.scheduler.config, record.times["mu"])
    return plan.replace(origin={**plan.origin, **{name: value for name, value in known.items() if value}})


def _plain(value: Any) -> Any:
    """An argument as JSON holds it."""
    return value.tolist() if hasattr(value, "tolist") else value


def exchanged(pipe: Pipeline, parts: Mapping[str, Any]) -> Pipeline:
    """A pipeline of its own with some components exchanged and all settings kept; the original keeps its components.

    Making it anew from `pipe.components` would lose what the configuration says beside them
    (`force_zeros_for_empty_prompt`, `is_distilled`, ...).
    """
    other = copy.copy(pipe)
    other.register_modules(**parts)
    return other


_LARGEST = 100_000
"""Largest whole number in a stored configuration: schedulers make tables and lists of such lengths."""


def open_scheduler(configuration: Any) -> Any:
    """The scheduler of a stored configuration (`scheduler_config.json`), ours or one of diffusers.

    Raises:
        PlanError: it names no scheduler, or its settings are none that the class takes.
    """
    import diffusers

    name = configuration.get("_class_name") if isinstance(configuration, dict) else None
    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    if name != "PlanScheduler" and name not in known:
        raise PlanError("not a scheduler of diffusers", value=name, hint=nearest(str(name), known))
    for key, count in configuration.items():
        if isinstance(count, int) and abs(count) > _LARGEST:
            raise PlanError(f"{key} of the stored {name} is larger than {_LARGEST}", value=count)
    made = PlanScheduler if name == "PlanScheduler" else getattr(diffusers, name)
    try:
        return made.from_config(configuration)
    except PlanError:
        raise
    except Exception as error:  # whatever its constructor stumbles over
        raise PlanError(
            f"{name} refuses its stored configuration: {error}", hint="Save the scheduler again."
        ) from error
