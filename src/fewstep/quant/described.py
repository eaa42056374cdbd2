"""The report of a low-bit network that is there already: made by `fewstep.quantize`, or opened from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant.apply import kept_row
from fewstep.quant.layer import QuantLayer
from fewstep.quant.report import LayerReport, QuantReport, bits_per_weight, disk_bytes, own_bytes, resident_bytes

KEPT = "quant_report"
"""Attribute of a network that was quantized in this process: its report, with the reasons that no folder holds."""


def report_of(model: nn.Module) -> QuantReport:
    """What is stored of every layer of a low-bit network.

    Args:
        model: with layers of `fewstep.quant`.

    Returns:
        The report of its quantization where that happened here; else one read off the layers, without reasons, whose
        bytes before are those of the types that the layers compute in.

    Raises:
        FewstepError: no layer is in low bits.
    """
    known = vars(model).get(KEPT)
    if isinstance(known, QuantReport):
        return known
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    if not layers:
        raise FewstepError("the network is not quantized", value=type(model).__name__, hint="fs.quantize(pipe, 'w4a8')")
    rows = tuple(_rows(model))
    count = sum(row.weights for row in rows if row.quantized)
    saved = sum(row.bytes_before - row.bytes_after for row in rows)
    disk, resident = disk_bytes(model), resident_bytes(model)
    return QuantReport(
        scheme=_scheme(model, layers),
        backend=layers[0].backend,
        rows=rows,
        parameters=count + sum(p.numel() for p in model.parameters()),
        disk_before=disk + saved,
        disk_after=disk,
        resident_before=resident + saved,
        resident_after=resident,
        bits_per_weight=bits_per_weight(layers),
    )


def from_dict(values: Mapping[str, Any]) -> QuantReport:
    """The report whose `to_dict` gave these values; further keys are left out."""
    known = {name: values[name] for name in QuantReport.__dataclass_fields__ if name in values}
    rows = tuple(LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in values["rows"])
    return QuantReport(**{**known, "rows": rows, "unmatched": tuple(values.get("unmatched", ()))})


def _rows(model: nn.Module) -> list[LayerReport]:
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            found.append(_low_row(name, module))
        elif list(module.parameters(recurse=False)):
            found.append(kept_row(name, module, ""))
    return found


def _low_row(name: str, layer: QuantLayer) -> LayerReport:
    digest = 0 if layer.schemes_digest is None else layer.schemes_digest.nbytes  # the model's, not the layer's
    weights, after = layer.weight_shape.numel(), own_bytes(layer) - digest
    return LayerReport(
        name=name,
        kind=layer.kind,
        shape=tuple(layer.as_held(torch.empty(layer.weight_shape, device="meta")).shape),
        weights=weights,
        bits=str(layer.scheme),
        kernel=layer.kernel,
        bytes_before=after - layer.weight_bytes() + weights * layer.float_dtype.itemsize,
        bytes_after=after,
        quantized=True,
    )


def _scheme(model: nn.Module, layers: list[QuantLayer]) -> str:
    """What the folder calls it, or that of the layer with the most weights."""
    config: Any = getattr(model, "config", None)
    stored = getattr(config, "quantization_config", None)
    named = stored.get("scheme") if isinstance(stored, Mapping) else getattr(stored, "scheme", None)
    return str(named or max(layers, key=lambda layer: (layer.kind != "Embedding", layer.weight_shape.numel())).scheme)
