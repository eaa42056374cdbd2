"""`fewstep.quantize` and the report of what it did."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fewstep.api.open_pipelines import job
from fewstep.errors import FewstepError
from fewstep.jobs.quantize.context import QuantizeContext, named_rows
from fewstep.jobs.quantize.job import low_parts, low_pipeline
from fewstep.pipelines import backbones_of, identity_of
from fewstep.quant import Calibration, QuantReport, Scheme
from fewstep.quant import quantize as quantize_module
from fewstep.quant.calls import Example
from fewstep.quant.described import KEPT, from_dict, report_of

T = TypeVar("T")


def quantize(
    target: T,
    scheme: str | Scheme = "",
    *,
    budget: str = "",
    effective_bits: float = 0,
    method: str = "rtn",
    parts: Sequence[str] = ("backbone",),
    conditions: str | Sequence[Any] = "auto",
    items: int = 8,
    steps: int = 4,
    guidance: float = 1.0,
    calibration: Calibration | None = None,
    skip: Sequence[str] = (),
    example: Example | None = None,
    inplace: bool = False,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> T:
    """Low-bit weights and activations for a pipeline, or for any torch network; the command is `fewstep quantize`.

        low = fs.quantize(pipe, "w4a8")
        print(fs.quant_report(low))        # every layer, its bits, its kernel, the reason

    Args:
        target: a diffusers pipeline, or a torch network with Linear, convolution or Embedding layers.
        scheme: one for the backbone, such as `w4a8`; first, last and conditioning layers get more. `w4a8` where
            neither a budget nor bits are asked for.
        budget: bytes of the backbone's file, such as `2.5GB`: bits are chosen layer by layer.
        effective_bits: the same, as stored bits per weight.
        method: how weights are rounded: `rtn`, `gptq`, `adaround`, `smoothquant`, `svdquant:8`, ...
        parts: of the pipeline: `backbone`, `text`, `vae`.
        conditions: prompts or class labels that layers are measured on; `auto` fits the pipeline.
        items: so many pairs of condition and seed.
        steps: network evaluations of the plan that the layers are measured in.
        guidance: `guidance_scale` of these calls.
        calibration: for a torch network, what its layers see (`fewstep.quant.calibrate`), where the method needs it.
        skip: for a torch network, names or globs of modules that stay in float.
        example: for a torch network, (args, kwargs) of one call, or a list of calls, such as one of each step: shows
            its first, last and conditioning layers, and those that 8-bit inputs would break.
        inplace: put the low-bit networks into `target` itself, and keep no other copy.
        settings: further settings of the recipe by dotted name, such as `{"allocation.bops": 0.1}`.
        out: a run directory to keep; a call that was killed goes on there.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        A new pipeline, or network; `target` itself with `inplace`.

    Raises:
        FewstepError: a scheme, method or budget that cannot be met, or a target that is in low bits already.
    """
    chosen = str(scheme) or ("" if budget or effective_bits or "backbone" not in parts else "w4a8")
    if isinstance(target, nn.Module):
        if budget or effective_bits:
            hint = "Give a scheme, or call fewstep.quant.mixed.quantize_mixed with a scheme per layer."
            raise FewstepError("bits under a budget are chosen for pipelines", value=type(target).__name__, hint=hint)
        low = target if inplace else copy.deepcopy(target)
        report = quantize_module(low, chosen, skip=skip, method=method, calibration=calibration, example=example)
        setattr(low, KEPT, report)
        return low
    if calibration is not None or skip or example is not None:
        hint = "A pipeline is calibrated on `conditions`; quantize its network alone to leave layers out."
        raise FewstepError(
            "calibration, skip and example belong to a torch network", value=type(target).__name__, hint=hint
        )
    given = {
        "scheme": chosen, "budget": budget, "effective_bits": effective_bits, "method": method, "parts": list(parts),
        "steps": steps, "guidance": guidance, "call": call, "calibration.items": items,
        "calibration.conditions": conditions if isinstance(conditions, str) else list(conditions),
    }  # fmt: skip
    pipe: Any = target
    with job("quantize", QuantizeContext.open, pipe, given, settings, out=out, progress=progress, fuse=True) as found:
        return _quantized(found, target, inplace)


def _quantized(context: QuantizeContext, target: Any, inplace: bool) -> Any:
    context.check()
    made = low_parts(context)
    rows: list[int] = []
    for part in made.values():
        setattr(part.model, KEPT, from_dict(part.report))
        rows = part.report.get("per_step", {}).get("rows", rows)
    models = {name: part.model for name, part in made.items()}
    plan = named_rows(context.plan, rows).replace(
        identity=identity_of(context.sampler(**models).pipe, context.guidance)
    )
    low = low_pipeline(context, models, plan, changed=bool(rows))
    if not inplace:
        return low
    target.register_modules(**models, scheduler=low.scheduler)
    return target


def quant_report(target: Any) -> QuantReport:
    """What became of every layer of a low-bit pipeline or network: bits, kernel, bytes, and the reason where known.

    Args:
        target: made by `quantize`, or opened from a folder.

    Raises:
        FewstepError: nothing in it is in low bits.
    """
    return report_of(target if isinstance(target, nn.Module) else next(iter(backbones_of(target).values())))
