"""The network that denoises in low bits: a scheme obeyed or bits chosen, then blocks reconstructed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.jobs.low_bit import LowBitPart, output_left
from fewstep.jobs.quantize.choose import BitAllocator
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.jobs.quantize.per_step import around, bits_per_step
from fewstep.quant import QuantReport, Scheme, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.calls import spread_calls
from fewstep.quant.first_token import keep_first_tokens
from fewstep.quant.methods import method_of
from fewstep.quant.mixed import quantize_mixed
from fewstep.quant.modules import copy_to_quantize
from fewstep.quant.reconstruct import blocks_of, reconstruct
from fewstep.quant.report import disk_bytes
from fewstep.quant.sensitivity import Table
from fewstep.quant.split import split_skips


def low_backbone(context: QuantizeContext, name: str) -> LowBitPart:
    """The quantized backbone of this name, its layers, and what else is to be told about it."""
    recipe, calls = context.recipe, context.calls[name]
    if not calls:
        hint = "Use more steps, or the pipeline without that network."
        raise FewstepError("a network is never called at these steps", value=name, hint=hint)
    model = copy_to_quantize(context.backbones[name])
    split = split_skips(model) if recipe.split_skips else []
    apart = keep_first_tokens(model, calls) if recipe.first_token else []
    extra: dict[str, Any] = {"first_token": apart, "split_skips": split}
    full = copy_to_quantize(model) if method_of(recipe.method).reconstruct or recipe.per_step else None
    options = quantize_options(context, name, model)
    if recipe.scheme:
        report = quantize(model, recipe.scheme, example=spread_calls(calls), **options)
        if recipe.per_step and full is not None:
            draw, rungs = context.drawing(name, "latent"), recipe.rungs or around(recipe.scheme)
            rows = len(context.plan.rows)
            model, report, found = bits_per_step(context.run, draw, rows, calls[0], full, model, report, rungs, options)
            extra["per_step"] = found
    else:
        report = _chosen(context, name, model, options, extra)
    if full is not None and method_of(recipe.method).reconstruct:
        extra["reconstruction"] = _reconstructed(context, name, full, model)
    extra["output_sqnr"] = output_left(context.run, name, context.backbones[name], model, spread_calls(calls))
    return LowBitPart(model, {**report.to_dict(), **extra})


def _chosen(
    context: QuantizeContext, name: str, model: nn.Module, options: dict[str, Any], extra: dict[str, Any]
) -> QuantReport:
    """Quantize with the bits that the sweep of allocations found best."""
    recipe, share, tag = context.recipe, _share(context, name), "" if name == context.backbone else f"-{name}"
    chooser = BitAllocator(recipe, context.run, model, context.drawing(name), context.calls[name], options, share, tag)
    _ = chooser.budget  # a budget that cannot be met fails before hours of measurement
    table = context.run.unit(f"sensitivity{tag}", chooser.measure, shared=True)
    ratios: Table = {}
    if recipe.allocation.joint:
        ratios = context.run.unit(f"sensitivity-sqnr{tag}", chooser.measure_ratios, shared=True)
    chosen = context.run.unit(f"choose{tag}", lambda: chooser.choose(table, ratios), shared=True)
    reasons = chooser.reasons(table, chosen["schemes"])
    report = quantize_mixed(model, chosen["schemes"], reasons=reasons, **options)
    extra |= {"sensitivity": table, "groups": chooser.groups, "reasons": reasons}
    extra["allocation"] = {k: v for k, v in chosen.items() if k != "schemes"}
    return report


def _share(context: QuantizeContext, name: str) -> float:
    """The part of a budget of bytes that this one of the networks gets: its part of their bytes now."""
    sizes = {name: disk_bytes(model) for name, model in context.backbones.items()}
    return sizes[name] / sum(sizes.values())


def quantize_options(context: QuantizeContext, name: str, model: nn.Module) -> dict[str, Any]:
    """Options of `quantize`: the method, and calibration where it or a scheme needs it."""
    recipe, method = context.recipe, method_of(context.recipe.method)
    plain, backend = dataclasses.replace(method, reconstruct=0), "int8" if recipe.resident == "int8" else "auto"
    schemes = [Scheme.parse(s) for s in ([recipe.scheme] if recipe.scheme else recipe.allocation.candidates)]
    if recipe.per_step:
        schemes += [Scheme.parse(s) for s in recipe.rungs]
    if not (method.calibrated or method.smooth or any(s.calibrated or s.smooth for s in schemes)):
        return {"method": plain, "backend": backend}
    items, sampler = context.calibration, context.sampler(**{name: model})

    def draw(some: Any, numbers: Any) -> None:
        with torch.no_grad():
            sampler(context.plan, None if items.conditions is None else list(some), list(numbers), output="latent")

    given = [None] * len(items.seeds) if items.conditions is None else items.conditions
    ranges = recipe.calibration.ranges
    seen = calibrate(model, draw, given, items.seeds, batch=recipe.batch, second=method.calibrated, ranges=ranges)
    return {"method": plain, "backend": backend, "calibration": seen}


def _reconstructed(context: QuantizeContext, name: str, full: nn.Module, model: nn.Module) -> list[dict[str, Any]]:
    """Learn the roundings block by block, in place; the errors of the blocks as JSON values."""
    draw = context.drawing(name, output="latent")
    steps = method_of(context.recipe.method).reconstruct
    blocks = blocks_of(model, draw)
    found = []
    with context.run.progress("block reconstruction", total=len(blocks)) as advance:
        for block in blocks:
            (error,) = reconstruct(full, model, draw, [block], steps=steps)
            found.append({**dataclasses.asdict(error), "kept": error.kept})
            advance(1, note=block)
    return found
