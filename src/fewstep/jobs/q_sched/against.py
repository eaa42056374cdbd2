"""Published ways to spend the same bytes, as `fewstep quantize` does it: SVDQuant's branch, MixDQ's bits per layer."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.jobs.context import JobContext
from fewstep.jobs.low_bit import LowBitPart, file_bytes
from fewstep.jobs.pipeline_recipe import PipelineRecipe
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.quantize.backbone import low_backbone
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.jobs.quantize.recipe import QuantizeCalibration, QuantizeRecipe
from fewstep.quant import Scheme
from fewstep.quant.scheme import WEIGHT_BITS, default_group

Context = JobContext[QSchedRecipe]
LARGEST_RANK = 128
"""Of the float branch; 32 is usual."""


def quantized_by(name: str, context: Context, backbone: str, size: int) -> LowBitPart:
    """A backbone by another way in at most as many bytes.

    Args:
        name: `svdquant` or `mixdq`.
        context: of the job.
        backbone: name of the component.
        size: bytes of its file.

    Raises:
        FewstepError: the bytes do not suffice.
    """
    return (_svdquant if name == "svdquant" else _mixdq)(context, backbone, size)


def _mixdq(context: Context, backbone: str, size: int) -> LowBitPart:
    """Bits per layer under the budget, the first token apart (arXiv 2405.17873)."""
    inputs = Scheme.parse(context.recipe.scheme).activation_bits
    candidates = [f"w{bits}a{inputs}" for bits in WEIGHT_BITS]
    whole = size * len(context.backbones)  # a budget is of all networks, and each gets its share
    return low_backbone(_told(context, budget=str(whole), allocation={"candidates": candidates}), backbone)


def _svdquant(context: Context, backbone: str, size: int) -> LowBitPart:
    """A float branch paid for by one scale per row, or by fewer bits: whichever keeps more of the network's output.

    SVDQuant (arXiv 2411.05007) adds its branch to what is stored; at equal bytes something else has to go.
    """
    scheme = Scheme.parse(context.recipe.scheme)
    fewer = max((bits for bits in WEIGHT_BITS if bits < scheme.weight_bits), default=None)
    cheaper = [replace(scheme, group_size=None)]
    if fewer is not None and scheme.weight_format in ("int", "asym"):
        cheaper.append(replace(scheme, weight_bits=fewer, group_size=default_group(fewer)))
    found = []
    for kind in cheaper:
        part = _widest(lambda rank, kind=kind: _branched(context, backbone, kind, rank), size)  # type: ignore[misc]
        found += [part] if part is not None else []
    if not found:
        hint = "Leave svdquant out of `against`."
        raise FewstepError("no float branch fits beside weights of these bytes", value=str(scheme), hint=hint)
    return max(found, key=lambda part: float(part.report["output_sqnr"]))


def _branched(context: Context, backbone: str, scheme: Scheme, rank: int) -> LowBitPart:
    part = low_backbone(_told(context, scheme=str(scheme), method=f"svdquant:{rank}"), backbone)
    return LowBitPart(part.model, {**part.report, "rank": rank})


def _widest(made: Callable[[int], LowBitPart], size: int) -> LowBitPart | None:
    """The branch of the largest rank that fits; None where none does."""
    best: LowBitPart | None = None

    def beyond(rank: int) -> bool:
        nonlocal best
        part = made(rank)
        if _stored(part) > size:
            return True
        best = part  # ranks that fit are tried in growing order
        return False

    top = 1
    while top <= LARGEST_RANK and not beyond(top):
        top *= 2
    bisect_left(range(top // 2 + 1, top), True, key=beyond)
    return best


def _stored(part: LowBitPart) -> int:
    """Bytes of the file that a part would take."""
    model: Any = part.model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return file_bytes(Path(folder))


def _told(context: Context, **aim: Any) -> QuantizeContext:
    """The quantization of the same pipeline, as the job of that name is told."""
    recipe = context.recipe
    same = {name: getattr(recipe, name) for name in PipelineRecipe.model_fields if name not in ("kind", "about")}
    calibration = {"conditions": load_prompts(recipe.searched(), QuantizeCalibration().items)}
    told = QuantizeRecipe(**{**same, "results": "", "calibration": calibration, **aim})
    return QuantizeContext(told, context.run, context.pipe, context.guidance, context.identity)
