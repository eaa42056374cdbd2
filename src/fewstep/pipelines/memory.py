"""What a pipeline needs in memory, counted before there are weights: parts on the meta device, low bits, offload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.modules import LAYERS, FloatLayer
from fewstep.quant.rules import Rule, decisions_by_rules, default_rules
from fewstep.quant.scheme import Scheme

FULL = "none"
OFFLOADS = {"none": "", "model": "pipe.enable_model_cpu_offload()"}
"""How parts share the device, and the call of diffusers that makes it so: all stay, or one at a time."""


@dataclass(frozen=True)
class MemoryOption:
    """One way to run a pipeline.

    Attributes:
        schemes: of every part, `none` for full precision.
        offload: of `OFFLOADS`.
        peak: bytes on the device: weights and what the running part keeps beside them.
    """

    schemes: Mapping[str, str]
    offload: str
    peak: int


def part_bytes(
    model: nn.Module,
    scheme: str = FULL,
    *,
    rules: Sequence[Rule] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Bytes of the weights of a part under a scheme, as `fewstep.quant.quantize` would store them.

    Args:
        model: with weights or without (`torch.device("meta")`).
        scheme: such as `w4a8`, or `none`.
        rules: as in `quantize`.
        dtype: of what stays in float.
    """
    held = {id(t): t.numel() * dtype.itemsize for t in model.parameters()}
    if scheme != FULL:
        chosen = decisions_by_rules(model, Scheme.parse(scheme), (), default_rules(model) if rules is None else rules)
        for name, module in model.named_modules():
            own, _ = chosen.modules.get(name, (None, ""))
            if own is not None and isinstance(module, LAYERS):
                low = make_layer(cast("FloatLayer", module), own)
                held[id(module.weight)] = sum(t.numel() * t.dtype.itemsize for t in low.buffers())
    return sum(held.values()) + sum(t.numel() * t.dtype.itemsize for t in model.buffers())


def memory_options(
    parts: Mapping[str, nn.Module],
    schemes: Sequence[Mapping[str, str]],
    beside: Mapping[str, int],
    *,
    rules: Mapping[str, Sequence[Rule]] | None = None,
) -> list[MemoryOption]:
    """Every way to run these parts, in the order of `schemes`, each without offload and with it.

    Args:
        parts: by name.
        schemes: by the name of a part; parts that are not named stay in bfloat16.
        beside: bytes that a part keeps while it runs (activations), by its name.
        rules: by the name of a part, as in `quantize`.
    """
    options = []
    for some in schemes:
        weights = {
            name: part_bytes(part, some.get(name, FULL), rules=(rules or {}).get(name)) for name, part in parts.items()
        }
        whole = {name: some.get(name, FULL) for name in parts}
        resident = sum(weights.values()) + max(beside.values(), default=0)
        alone = max(size + beside.get(name, 0) for name, size in weights.items())
        options += [MemoryOption(whole, "none", resident), MemoryOption(whole, "model", alone)]
    return options


def first_that_fits(options: Sequence[MemoryOption], budget: int) -> MemoryOption:
    """The first option within a budget of bytes.

    Raises:
        FewstepError: none is.
    """
    for option in options:
        if option.peak <= budget:
            return option
    least = min((option.peak for option in options), default=0)
    hint = f"The least that was asked about takes {least / 1e9:.1f} GB: fewer bits, or smaller pictures."
    raise FewstepError("no way to run the pipeline fits", value=f"{budget / 1e9:.1f} GB", hint=hint)
