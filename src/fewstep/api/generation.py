"""`fewstep.generate`: samples of whatever has a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.api.models import Student, network_device
from fewstep.denoiser import Denoiser, Guided
from fewstep.errors import FewstepError, nearest
from fewstep.executor import sample
from fewstep.pipelines import PipelineSampler, identity_of, plan_of
from fewstep.pipelines.conditions import conditions_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Identity, Plan
from fewstep.report.images import to_pil

OUTPUTS = ("pt", "pil", "latent")


def generate(
    target: Any,
    conditions: str | Sequence[Any] | Mapping[str, Tensor] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    plan: Plan | None = None,
    steps: int = 4,
    guidance: float | None = None,
    negative: Mapping[str, Tensor] | None = None,
    shape: Sequence[int] | None = None,
    batch: int = 32,
    output_type: str = "pt",
    **call: Any,
) -> Any:
    """One sample per condition and seed: all seeds of the first condition, then those of the next.

    A sample depends on its condition and seed alone: neither on the batch nor on the device.

    Args:
        target: a pipeline; a `Student`; or a `Denoiser`, which needs `plan` and `shape`.
        conditions: prompts, or class labels by number or name; for a torch network its keyword arguments, tensors with
            a row per condition. None for an unconditional one.
        seeds: whole numbers below 2**32 (torch reads the last 32 bits of larger ones).
        plan: the sampler; checked against what it belongs to. What the target follows now unless given.
        steps: of a pipeline that has no plan of its own.
        guidance: `guidance_scale`; that of the plan unless given, and 1, without, where it says none.
        negative: for a torch network, the arguments of no condition, tensors with one row.
        shape: of one sample of a torch network.
        batch: samples per call.
        output_type: `pt`: tensors in [0, 1]; `pil`: a list of pictures, of lists of pictures for videos; `latent`:
            what the plan ends in.
        call: further arguments of the pipeline's call, such as `height` or `negative_prompt`.

    Returns:
        (B, 3, H, W), videos (B, T, 3, H, W), B = conditions times seeds; a torch network's own samples (B, ...).

    Raises:
        FewstepError: no seeds, or conditions of another kind.
        IdentityError: the plan belongs to another network, quantization or guidance.
    """
    if output_type not in OUTPUTS:
        raise FewstepError("unknown output_type", value=output_type, hint=nearest(output_type, OUTPUTS))
    seeds = list(seeds)
    if not seeds:
        raise FewstepError("generate needs a seed", hint="Give seeds=[0].")
    if isinstance(target, Denoiser | Student):
        return _samples(target, conditions, seeds, plan, guidance, negative, shape, batch)
    chosen, scale = followed(target, plan, steps, guidance, call)
    if isinstance(conditions, str):
        conditions = [conditions]
    known = None if conditions is None else conditions_of(target, list(conditions))
    given = None if known is None else [condition for condition in known for _ in seeds]
    sampler = PipelineSampler(target, scale, call, batch)
    with torch.no_grad():
        drawn = sampler(chosen, given, seeds * len(known or [None]), "latent" if output_type == "latent" else "image")
    return _pictures(drawn) if output_type == "pil" else drawn


def followed(
    pipe: Pipeline, plan: Plan | None, steps: int, guidance: float | None, call: Mapping[str, Any]
) -> tuple[Plan, float]:
    """The plan of a call and its guidance: what is given, else what the pipeline follows now, in so many steps.

    Raises:
        IdentityError: the plan belongs to another network, quantization or guidance.
    """
    stored: Plan | None = plan
    if plan is None and isinstance(pipe.scheduler, PlanScheduler):
        stored = pipe.scheduler.plan
    scale = guidance if guidance is not None else (stored.identity.guidance if stored is not None else None) or 1.0
    chosen = (
        plan if plan is not None else plan_of(pipe, stored.steps if stored else steps, guidance_scale=scale, **call)
    )
    chosen.check(_identity(pipe, scale, plan is not None))
    return chosen, scale


def _identity(pipe: Pipeline, guidance: float, whole: bool) -> Identity:
    """What is known of the call: a plan that was handed over is checked against the weights too."""
    return identity_of(pipe, guidance) if whole else Identity(guidance=guidance)


def _samples(
    target: Denoiser | Student,
    conditions: Any,
    seeds: list[int],
    plan: Plan | None,
    guidance: float | None,
    negative: Mapping[str, Tensor] | None,
    shape: Sequence[int] | None,
    batch: int,
) -> Tensor:
    """Samples of a torch network."""
    if isinstance(target, Student):
        plan, shape = plan or target.plan, shape or target.shape
    if plan is None or shape is None:
        hint = "Give plan=fs.plan_of(denoiser, steps=4) and shape=, that of one sample."
        raise FewstepError("a denoiser is run by a plan", value={"plan": plan, "shape": shape}, hint=hint)
    if conditions is not None and not isinstance(conditions, Mapping):
        hint = "Give the keyword arguments of the network: {'label': tensor}."
        raise FewstepError(
            "conditions of a torch network are named tensors", value=type(conditions).__name__, hint=hint
        )
    count = {len(value) for value in (conditions or {}).values()} or {1}
    if len(count) > 1:
        raise FewstepError("conditions differ in their number of rows", value=sorted(count), hint="One row each.")
    pairs = [(row, seed) for row in range(count.pop()) for seed in seeds]
    parts, device = [], network_device(target.network)
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        rows = torch.tensor([row for row, _ in some])
        given = {name: value[rows.to(value.device)] for name, value in (conditions or {}).items()}
        without = {name: value.expand(len(some), *value.shape[1:]) for name, value in (negative or {}).items()} or None
        network = Guided(
            target if isinstance(target, Student) else target.network,
            given,
            without,
            guidance if guidance is not None else 1.0,
        )
        with torch.no_grad():
            parts.append(sample(plan, network, seeds=[s for _, s in some], shape=shape, device=device))
    return torch.cat(parts)


def _pictures(drawn: Tensor) -> list[Any]:
    """Pictures (B, 3, H, W) or videos (B, T, 3, H, W) in [0, 1] as those of Pillow."""
    if drawn.ndim == 5:
        return [_pictures(video) for video in drawn]
    return [to_pil(picture) for picture in drawn]
