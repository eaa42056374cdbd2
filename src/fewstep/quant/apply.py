"""Quantize a model in place: every layer is replaced or kept, and the report says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.calibration import Calibration
from fewstep.quant.calls import Example
from fewstep.quant.config import mark, unmark
from fewstep.quant.kernels import check_backend, kernel_reason
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer, run_conditioning_by_row
from fewstep.quant.methods import RoundingMethod, fitting, method_of, store
from fewstep.quant.modules import LAYERS, FloatLayer, kind_of, replace_modules, weight_rows
from fewstep.quant.outliers import remedied, suspected
from fewstep.quant.report import LayerReport, QuantReport, bits_per_weight, disk_bytes, own_bytes, resident_bytes
from fewstep.quant.rules import Decisions, Rule, decisions_by_rules, default_rules
from fewstep.quant.scheme import Scheme
from fewstep.quant.split import split_like
from fewstep.quant.wrappers import bare, check_bare

MakeLayer = Callable[[str, FloatLayer, Scheme], tuple[QuantLayer, str]]
"""(name, float layer, scheme) -> its low-bit twin, filled, and why it got less than the scheme, if it did."""


def quantize(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    skip: Sequence[str] = (),
    rules: Sequence[Rule] | None = None,
    backend: str = "auto",
    method: str | RoundingMethod = "rtn",
    calibration: Calibration | None = None,
    example: Example | None = None,
) -> QuantReport:
    """Quantize every Linear, convolution and Embedding of a model in place and report on all its parameters.

    A model of diffusers or transformers can then be saved and loaded as any other (`fewstep.pipelines.low_bit`). In a
    compiled model (`torch.compile(model)`) the network inside is quantized, and compiles anew at the next call.

    Args:
        scheme: such as `w4a8`; see `Scheme`.
        skip: names or globs of modules to keep in float.
        rules: layers that get more bits; the first that covers a layer wins. `()` gives every layer the scheme; unless
            given, what was published for this class of networks (`PUBLISHED_RULES`), or else `FEW_STEP_RULES`.
        backend: `fewstep` (any device), `torchao` (its int8 kernel for W8A8 Linear), `auto` (torchao on CUDA, else
            fewstep).
        method: `rtn`, `clip`, `smoothquant`, `gptq`, `adaround`, `svdquant`, some with an argument (`svdquant:16`);
            see `fewstep.quant.methods`.
        calibration: what the layers see (`fewstep.quant.calibration.calibrate`); needed by gptq, adaround, smoothquant
            and by static activations. A layer that it did not reach is rounded to nearest, and the report says so.
        example: (args, kwargs) of one call, for networks with names of their own: where the patterns of a rule for
            first, last or conditioning layers find none, these are the layers that the call shows. The report says
            what found nothing. Where dynamic 8-bit inputs cost the output of this call more than a tenth, the fewest
            layers that it takes get the cheapest remedy that carries them: smoothing, a rotation or 16-bit inputs
            (`fewstep.quant.outliers`). A list of calls, such as one of each step, is looked at whole. Without a call,
            and unless `rules` are given, the weights alone say where a remedy is likely to be needed
            (`fewstep.quant.remedies.guessed`).

    Raises:
        FewstepError: bad scheme, backend, method or pattern; a model that is quantized already, not loaded, not
            finite, or whose layers are wrapped or replaced (`fewstep.quant.wrappers`); calibration that is missing or
            of another model.
    """
    model, chosen, how = bare(model), Scheme.parse(scheme), method_of(method)
    chosen = how.extend(chosen, calibration is not None)
    check_backend(backend)
    check_quantizable(model)
    calls = example if isinstance(example, list) else [example] if example is not None else []
    covering = default_rules(model) if rules is None else rules
    given = decisions_by_rules(model, chosen, skip, covering, next(iter(calls), None))
    _check_calibration(model, chosen, how, calibration)
    if calls:
        given, calibration = remedied(model, given, calls, calibration)
    elif rules is None:
        given = suspected(model, given)
    return quantize_as(model, given, backend=backend, method=how, calibration=calibration)


def quantize_as(
    model: nn.Module,
    given: Decisions,
    *,
    backend: str = "auto",
    method: str | RoundingMethod = "rtn",
    calibration: Calibration | None = None,
) -> QuantReport:
    """Quantize a model in place as decided for every layer; arguments and errors of `quantize`."""
    how = method_of(method)
    if how.reconstruct:
        hint = "Quantize with rtn and call fewstep.quant.reconstruct.reconstruct, or use `fewstep quantize`."
        raise FewstepError("block reconstruction needs runs of the whole model", value=str(method), hint=hint)
    _check_calibration(model, given.scheme, how, calibration)
    make = partial(_rounded, backend=check_backend(backend), method=how, calibration=calibration)
    return replace_layers(model, given, backend, make, before=(disk_bytes(model), resident_bytes(model)))


def replace_layers(
    model: nn.Module,
    given: Decisions,
    backend: str,
    make: MakeLayer,
    *,
    before: tuple[int, int],
    keep: Callable[[str, nn.Module], None] = lambda name, module: None,
) -> QuantReport:
    """Replace the layers of a model as decided, tell its library, and report.

    Args:
        make: the low-bit twin of a layer.
        before: bytes on disk and in memory that the model takes in float.
        keep: called for every module that stays.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows: list[LayerReport] = []

    def low(name: str, module: nn.Module) -> nn.Module | None:
        scheme, reason = given.modules.get(name, (None, ""))
        if scheme is None or not isinstance(module, LAYERS):
            keep(name, module)
            rows.extend([kept_row(name, module, reason)] if name in given.modules else [])
            return None
        layer, why = make(name, cast("FloatLayer", module), scheme)
        rows.append(low_row(name, module, layer, "; ".join(filter(None, (reason, why)))))
        return layer

    replace_modules(model, low)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLayer)}
    run_conditioning_by_row(layers.values())
    mark(model, given.scheme, {name: layer.scheme for name, layer in layers.items()}, backend)
    return QuantReport(
        str(given.scheme), backend, tuple(rows), parameters, before[0], disk_bytes(model), before[1],
        resident_bytes(model), bits_per_weight(layers.values()), given.unmatched,
    )  # fmt: skip


def dequantize(model: nn.Module) -> nn.Module:
    """Put float layers back in place; their weights keep the rounding they got, activations are exact again."""
    inner: Any = bare(model)
    replace_modules(inner, lambda _, layer: layer.to_float() if isinstance(layer, QuantLayer) else None)
    if hasattr(inner, "hf_quantizer"):
        del inner.hf_quantizer
    unmark(inner)
    return model


def install(model: nn.Module, layers: Mapping[str, Scheme], backend: str) -> None:
    """Put empty quantized layers in the named places, for a checkpoint to fill.

    Raises:
        FewstepError: the model has no such layer.
    """
    split_like(model, layers)
    modules = dict(model.named_modules())
    for name in layers:
        if not isinstance(modules.get(name), LAYERS):
            raise FewstepError(
                "the quantized checkpoint names a layer that this model does not have",
                value=name,
                hint="Load it with the model class and configuration it was saved from.",
            )

    def empty(name: str, module: Any) -> nn.Module | None:
        return make_layer(module, layers[name], backend) if name in layers else None

    replace_modules(model, empty)
    run_conditioning_by_row(layer for layer in model.modules() if isinstance(layer, QuantLayer))


def check_quantizable(model: nn.Module) -> None:
    """Raise a FewstepError for a model that has no layers to quantize, low-bit ones, or wrapped ones."""
    if isinstance(model, LAYERS):
        raise FewstepError("a single layer cannot be replaced in place", hint="Wrap it: torch.nn.Sequential(layer).")
    if not any(isinstance(m, (*LAYERS, QuantLayer)) for m in model.modules()):
        hint = "Only these kinds of layers have low-bit forms here."
        raise FewstepError("the model has no Linear, convolution or Embedding", value=type(model).__name__, hint=hint)
    if getattr(model, "hf_quantizer", None) is not None or any(isinstance(m, QuantLayer) for m in model.modules()):
        raise FewstepError("the model is quantized already", hint="Load the full-precision weights and quantize those.")
    check_bare(model)
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and not torch.isfinite(cast("Tensor", module.weight)).all():
            hint = "Check the checkpoint, or whether a cast to half precision overflowed."
            raise FewstepError("a weight holds NaN or infinity", value=name, hint=hint)


def _check_calibration(
    model: nn.Module, scheme: Scheme, method: RoundingMethod, calibration: Calibration | None
) -> None:
    if calibration is None:
        if method.calibrated or scheme.smooth or scheme.calibrated:
            hint = "Pass calibration=calibrate(model, run, prompts, seeds)."
            raise FewstepError("this scheme or method needs calibration", value=str(scheme), hint=hint)
        return
    modules = dict(model.named_modules())
    for name, found in ((name, calibration.get(name)) for name in calibration.layers):
        layer = modules.get(name)
        width = getattr(layer, "in_features", getattr(layer, "in_channels", None))
        if found is None or width != len(found.largest):
            hint = "Calibrate this very model; names and shapes must agree."
            raise FewstepError("the calibration belongs to another model", value=name, hint=hint)


def _rounded(
    name: str, source: FloatLayer, scheme: Scheme, *, backend: str, method: RoundingMethod,
    calibration: Calibration | None,
) -> tuple[QuantLayer, str]:  # fmt: skip
    """The twin of a layer in memory."""
    statistics = None if calibration is None else calibration.get(name)
    weight, groups = weight_rows(source), getattr(source, "groups", 1)
    if isinstance(source, nn.Embedding):  # nothing is multiplied: no inputs to calibrate by
        method = RoundingMethod()
    scheme, method, why = fitting(weight.shape, scheme, method, statistics, groups)
    layer = make_layer(source, scheme, backend)
    layer.load(store(weight, scheme, method, statistics, groups))
    return layer, why


def low_row(name: str, source: nn.Module, layer: QuantLayer, reason: str) -> LayerReport:
    """The report's row of a layer in low bits; the kernel has its say where nothing else needs one."""
    weight: Any = source.weight
    where: Any = {"linear": layer.linear, "on_cuda": weight.is_cuda, "regular": layer.native is not None}
    unread = weight.numel() * layer.float_dtype.itemsize if weight.is_meta else 0
    return LayerReport(
        name, layer.kind, tuple(weight.shape), weight.numel(), str(layer.scheme), layer.kernel,
        own_bytes(source) + unread, own_bytes(layer),
        reason or kernel_reason(layer.backend, layer.scheme, weights=weight.numel(), **where), quantized=True,
    )  # fmt: skip


def kept_row(name: str, module: nn.Module, reason: str) -> LayerReport:
    """The report's row of a module that keeps its float type."""
    parameters = list(module.parameters(recurse=False))
    size, first = own_bytes(module), parameters[0]
    bits = f"{first.element_size() * 8} float" if first.is_floating_point() else str(first.dtype)
    weights = sum(parameter.numel() for parameter in parameters)
    return LayerReport(name, kind_of(module), tuple(first.shape), weights, bits, "float", size, size, reason)
