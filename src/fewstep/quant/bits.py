"""Bits for every layer at a given mean, from recorded calls alone, without pictures (those: `fewstep quantize`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fewstep.quant.allocation import LayerOption, allocate, check_budget
from fewstep.quant.calls import Call, replay
from fewstep.quant.fidelity import sqnr
from fewstep.quant.mixed import quantize_mixed
from fewstep.quant.modules import eligible
from fewstep.quant.report import QuantReport
from fewstep.quant.sensitivity import costs, damage_of, layer_metrics

CANDIDATES = ("w3a8", "w4a8", "w8a8")
"""What a layer may get."""


def quantize_to_bits(model: nn.Module, calls: Sequence[Call], bits: float) -> QuantReport:
    """Quantize in place with a scheme per layer, so that the noise of the output is least at these bits per weight.

    Every layer is measured alone: noise power over signal power of the output of the recorded calls. These add up, and
    an integer programme chooses (MixDQ, arXiv 2405.17873, with one metric for all layers).

    Args:
        model: in full precision.
        calls: what the network is asked, from which its output is measured.
        bits: per weight, scales included.

    Raises:
        FewstepError: fewer bits than the smallest candidate has.
    """
    names = eligible(model)
    table = layer_metrics(
        model, {"quality": (lambda: replay(model, calls), sqnr)}, dict.fromkeys(names, "quality"), CANDIDATES
    )
    options = {
        name: [LayerOption(s, cost.bytes, damage_of(table[name][s], "quality"), 0) for s, cost in row.items()]
        for name, row in costs(model, names, CANDIDATES).items()
    }
    layers: list[Any] = [model.get_submodule(name) for name in names]
    weights = sum(layer.weight.numel() for layer in layers)
    biases = sum(layer.bias.nbytes for layer in layers if layer.bias is not None)
    smallest = sum(min(option.bytes for option in row) for row in options.values())
    check_budget("bits per weight", bits, 8 * (smallest - biases) / weights)
    found = allocate(options, int(bits * weights / 8) + biases)
    reasons = {
        name: f"{table[name][scheme]:.0f} dB alone, chosen for {bits:g} bits" for name, scheme in found.schemes.items()
    }
    return quantize_mixed(model, found.schemes, reasons=reasons)
