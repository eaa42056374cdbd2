"""What each layer alone costs at each bit width, content and quality measured apart (MixDQ, arXiv 2405.17873, 4.2).

Quantizing cross attention or feed-forward layers changes what is drawn; quantizing convolutions or self-attention adds
degradation. One metric ranks only one of the two: content layers are measured by the structural similarity of images,
quality layers by the signal-to-noise ratio of the network's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.apply import quantize
from fewstep.quant.calibration import Calibration
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.methods import RoundingMethod, fitting, method_of
from fewstep.quant.methods.base import nearest_code
from fewstep.quant.modules import LAYERS, weight_rows
from fewstep.quant.scheme import Scheme
from fewstep.quant.statistics import LayerStatistics

CONTENT = (
    "*attn2*", "*.ff.*", "*.ff_context.*", "*.net.*", "*.mlp.*", "*.ffn.*", "*feed_forward*", "*proj_mlp*",
    "*add_?_proj", "*to_add_out", "*context*", "*caption*", "*txt*", "*encoder_hid*",
)  # fmt: skip
"""Layers through which the condition shapes the picture: text attention and feed-forward, in the names of diffusers."""

Maker = Callable[[str, nn.Module, str], QuantLayer]
"""(name, layer, scheme) -> its quantized twin."""
Table = dict[str, dict[str, float]]
"""Metric of each layer at each scheme, higher is better: mean SSIM (content) or SQNR in dB (quality)."""


ModelMetric = tuple[Callable[[], Tensor], Callable[[Tensor, Tensor], float]]
"""What the whole model gives as it is at the moment of the call, and a metric of (before, now), higher is better."""


@dataclass(frozen=True)
class LayerCost:
    """What a layer takes at one scheme: bytes of its tensors, weight and activation bits, names of its buffers."""

    bytes: int
    weight_bits: float
    activation_bits: float
    parts: tuple[str, ...] = ()


def grouped(names: Sequence[str], content: Sequence[str] = CONTENT) -> dict[str, str]:
    """`content` or `quality` for each layer, by globs of names."""
    return {
        name: "content" if any(fnmatchcase(f".{name}", pattern) for pattern in content) else "quality"
        for name in names
    }  # fmt: skip


def layer_metrics(
    model: nn.Module,
    probes: Mapping[str, ModelMetric],
    groups: Mapping[str, str],
    schemes: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    make: Maker | None = None,
    known: Mapping[str, Mapping[str, float]] | None = None,
    watch: Callable[[str, str, float], None] | None = None,
    share: Callable[[Mapping[tuple[str, str], Callable[[], float]]], Sequence[float]] | None = None,
) -> Table:
    """The metric of every layer alone at every scheme, everything else in full precision.

    Runs the real low-bit layers, one at a time; the model is itself again afterwards.

    Args:
        probes: the probe of each group.
        groups: the group of each layer to measure.
        schemes: to measure, the same for all or those of each layer.
        make: makes the twin of a layer; by default rounded to nearest, without calibration.
        known: values of an earlier, interrupted measurement; they are not measured again.
        watch: called with layer, scheme and value after each measurement.
        share: computes the values that are not known, by (layer, scheme), in their order: where several processes do.

    Raises:
        FewstepError: a probe returned NaN or infinity, or a scheme does not fit a layer.
    """
    with torch.no_grad():
        references = {group: probes[group][0]() for group in sorted(set(groups.values()))}
    for group, reference in references.items():
        if not bool(reference.isfinite().all()):
            raise FewstepError(
                f"the full-precision model gives NaN or infinity on the {group} probe",
                hint="Check the calibration prompts and the model's type (float16 overflows).",
            )

    def value(name: str, scheme: str) -> float:
        run, metric = probes[groups[name]]
        with lowered(model, name, scheme, make), torch.no_grad():
            found = metric(references[groups[name]], run())
        if watch is not None:
            watch(name, scheme, found)
        return found

    pairs = [(name, s) for name in groups for s in (schemes[name] if isinstance(schemes, Mapping) else schemes)]
    kept = {(name, scheme): value for name, row in (known or {}).items() for scheme, value in row.items()}
    work = {pair: partial(value, *pair) for pair in pairs if pair not in kept}
    if share is not None:
        kept |= dict(zip(work, share(work), strict=True))
    table: Table = {name: {} for name in groups}
    for name, scheme in pairs:
        table[name][scheme] = kept[name, scheme] if (name, scheme) in kept else value(name, scheme)
    return table


@contextmanager
def lowered(model: nn.Module, name: str, scheme: str, make: Maker | None = None) -> Iterator[QuantLayer]:
    """The model with one layer quantized inside the context, itself again afterwards."""
    source = model.get_submodule(name)
    low = (make or maker())(name, source, scheme)
    parent, _, leaf = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, leaf, low)
    try:
        yield low
    finally:
        setattr(owner, leaf, source)


def maker(method: str | RoundingMethod = "rtn", calibration: Calibration | None = None) -> Maker:
    """Makes twins with what the method adds to a scheme (smoothing, float branch), and calibrated inputs.

    They round to nearest: gptq or adaround would multiply the time of a measurement.
    """
    plain = rounding_to_nearest(method)

    def make(name: str, layer: nn.Module, scheme: str) -> QuantLayer:
        if calibration is None:
            return low_bit(layer, scheme, method=plain)
        seen = calibration.get(name)
        alone = dataclasses.replace(calibration, layers={} if seen is None else {"0": seen})
        return low_bit(layer, scheme, method=plain, calibration=alone)

    return make


def rounding_to_nearest(method: str | RoundingMethod) -> RoundingMethod:
    """What a method stores, without the work of its rounding."""
    return dataclasses.replace(method_of(method), round=nearest_code, calibrated=False, reconstruct=0)


def low_bit(layer: nn.Module, scheme: str, **options: Any) -> QuantLayer:
    """The quantized twin of one layer; the layer itself stays as it is. Options as of `quantize`.

    Raises:
        FewstepError: it cannot be quantized with this scheme.
    """
    if not isinstance(layer, LAYERS):
        raise FewstepError("a layer cannot be quantized", value=type(layer).__name__, hint="Leave it in float.")
    holder = nn.Sequential(layer)
    report = quantize(holder, scheme, rules=(), **options)
    found = holder[0]
    if not isinstance(found, QuantLayer):
        raise FewstepError("a layer cannot be quantized", value=scheme, hint=report.rows[0].reason)
    return found


def damage_of(value: float, group: str) -> float:
    """A damage that adds up over layers: 1 - SSIM, or the noise power relative to the signal.

    The repository of arXiv 2405.17873 adds SSIM and decibels as they are. Independent errors add in power, not in
    decibels: ten layers at 30 dB leave 20 dB, whatever a layer at 60 dB does.
    """
    if group == "content":
        return max(1.0 - value, 0.0)
    return 10 ** (-value / 10)


def fitted_scheme(
    layer: Any, scheme: str, method: str | RoundingMethod = "rtn", statistics: LayerStatistics | None = None
) -> str:  # fmt: skip
    """The scheme that a layer gets when this one is asked for: with the method's parts, as far as it carries them."""
    how, groups = method_of(method), getattr(layer, "groups", 1)
    wanted = how.extend(Scheme.parse(scheme), statistics is not None)
    return str(fitting(weight_rows(layer).shape, wanted, how, statistics, groups)[0])


def costs(
    model: nn.Module, names: Sequence[str], schemes: Sequence[str] | Mapping[str, Sequence[str]]
) -> dict[str, dict[str, LayerCost]]:
    """What each layer takes at each scheme (the same for all, or its own), read off empty low-bit layers."""
    found: dict[str, dict[str, LayerCost]] = {}
    for name in names:
        source: Any = model.get_submodule(name)
        found[name] = {}
        for given in schemes[name] if isinstance(schemes, Mapping) else schemes:
            scheme = Scheme.parse(given)
            tensors = [*(low := make_layer(source, scheme)).buffers(), *low.parameters()]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            parts = tuple(key for key, _ in low.named_buffers())
            found[name][given] = LayerCost(size, scheme.weight_bits, scheme.activation_bits, parts)
    return found
