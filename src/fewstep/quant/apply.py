"""Quantize a model in place: decide for every layer, replace it or say why not, and report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.calibration import Calibration
from fewstep.quant.kernels import check_backend, describe, kernel_reason
from fewstep.quant.layer import QuantLayer
from fewstep.quant.methods import RoundingMethod, fitting, method_of, store
from fewstep.quant.places import make_layer, places_of, put
from fewstep.quant.report import LayerReport, QuantReport, disk_bytes, own_bytes, resident_bytes
from fewstep.quant.roles import Call, roles_of
from fewstep.quant.scheme import Scheme
from fewstep.quant.split import split_like
from fewstep.quant.statistics import LayerStatistics
from fewstep.quant.wrappers import bare, check_bare, family


@dataclass(frozen=True)
class Rule:
    """Layers that are treated otherwise than the scheme says.

    patterns:
        Names or globs of whole dotted module names; a name also covers everything below it.
    scheme:
        What these layers get (with more bits, never fewer, than the model's scheme), or None to keep them in float.
    role:
        `first`, `last` or `conditioning` (`fewstep.quant.roles`): what the patterns mean. Where they find nothing, the
        layers of this role are looked for in an example call.
    """

    patterns: tuple[str, ...]
    scheme: Scheme | None
    reason: str
    role: str = ""

    def covers(self, name: str) -> bool:
        """Whether a module of this name falls under the rule."""
        return any(_matches(name, pattern) for pattern in self.patterns)

    def adapt(self, scheme: Scheme) -> Scheme | None:
        """The scheme of a covered layer in a model quantized with `scheme`."""
        if self.scheme is None:
            return None
        weight = scheme if scheme.weight_bits >= self.scheme.weight_bits else self.scheme
        activation = scheme if scheme.activation_bits >= self.scheme.activation_bits else self.scheme
        return dataclasses.replace(
            weight,
            activation_bits=activation.activation_bits,
            activation_format=activation.activation_format,
            activation_group=activation.activation_group,
            smooth=scheme.smooth,
            rank=scheme.rank,
        )


# What a few-step model cannot afford: with four network calls no later step repairs what the first layers lose.
_END = "first or last layer: its error reaches every pixel, and it is small"
FEW_STEP_RULES = (
    Rule(("conv_in", "x_embedder", "pos_embed.proj", "img_in"), Scheme(8, 8), _END, "first"),
    Rule(("conv_out", "proj_out"), Scheme(8, 8), _END, "last"),
    Rule(
        (
            "time_embedding", "add_embedding", "time_text_embed", "time_embed", "time_proj", "timestep_embedder",
            "adaln_single", "condition_embedder", "caption_projection", "context_embedder", "encoder_hid_proj",
            "norm_out",
        ),
        Scheme(8, 16),
        "conditioning: one row per image or prompt, so 8-bit inputs save no time, and the error reaches every layer",
        "conditioning",
    ),
)  # fmt: skip


def quantize(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    skip: Sequence[str] = (),
    rules: Sequence[Rule] = FEW_STEP_RULES,
    backend: str = "auto",
    method: str | RoundingMethod = "rtn",
    calibration: Calibration | None = None,
    example: Call | None = None,
) -> QuantReport:
    """Quantize every Linear and Conv2d of a model in place and report on all its parameters.

    scheme:
        Such as `w4a8`; see `Scheme`.
    skip:
        Names or globs of modules to keep in float.
    rules:
        Layers that get more bits; the first that covers a layer wins. `()` gives every layer the scheme.
    backend:
        `fewstep` (any device), `torchao` (its int8 kernel for W8A8 Linear), `auto` (torchao on CUDA, else fewstep).
    method:
        `rtn`, `clip`, `smoothquant`, `gptq`, `adaround`, `svdquant`, some with an argument (`svdquant:16`); see
        `fewstep.quant.methods`.
    calibration:
        What the layers see (`fewstep.quant.calibration.calibrate`); needed by gptq, adaround, smoothquant and by static
        activations. A layer that it did not reach is rounded to nearest, and the report says so.
    example:
        (args, kwargs) of one call, for networks with names of their own: where the patterns of a rule for first, last
        or conditioning layers find none, these are the layers that the call shows. The report says what found nothing.

    A model of diffusers or transformers can then be saved and loaded as any other (see `fewstep.quant.storage`). In a
    compiled model (`torch.compile(model)`) the network inside is quantized, and compiles anew at the next call.

    Raises:
        FewstepError: bad scheme, backend, method or pattern; a model that is quantized already, not loaded, not
            finite, or whose layers are wrapped or replaced (`fewstep.quant.wrappers`); calibration that is missing or
            of another model.
    """
    model = bare(model)
    chosen, backend, how = Scheme.parse(scheme), check_backend(backend), method_of(method)
    if how.reconstruct:
        hint = "Quantize with rtn and call fewstep.quant.reconstruct.reconstruct, or use `fewstep quantize`."
        raise FewstepError("block reconstruction needs runs of the whole model", value=str(method), hint=hint)
    _check_model(model)
    _check_calibration(model, chosen, how, calibration)
    chosen = how.extend(chosen, calibration is not None)
    check_patterns(model, skip)
    rules, unmatched = found_rules(model, rules, example)
    all_rules = [Rule(tuple(skip), None, "kept on request"), *rules] if skip else list(rules)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    disk, resident = disk_bytes(model), resident_bytes(model)
    rows, layers, places = [], {}, places_of(model)
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, module in list(model.named_modules()):
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        target, reason = decide(name, module, chosen, all_rules, owners)
        if target is None or not isinstance(module, nn.Linear | nn.Conv2d):
            rows.append(kept_row(name, module, reason))
            continue
        statistics = None if calibration is None else calibration.get(name)
        layer, row = _quantize_layer(name, module, target, backend, reason, how, statistics)
        put(places[id(module)], layer)
        rows.append(row)
        layers[name] = layer.scheme
    mark(model, chosen, layers, backend)
    stored = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    bits = 8 * sum(layer.weight_bytes() for layer in stored)
    count = sum(layer.weight_shape.numel() for layer in stored)
    after = disk_bytes(model), resident_bytes(model)
    return QuantReport(
        str(chosen),
        backend,
        tuple(rows),
        parameters,
        disk,
        after[0],
        resident,
        after[1],
        bits / max(count, 1),
        unmatched,
    )


def dequantize(model: nn.Module) -> nn.Module:
    """Put float layers back in place; their weights keep the rounding they got, activations are exact again."""
    inner: Any = bare(model)
    places = places_of(inner)
    for layer in list(inner.modules()):
        if isinstance(layer, QuantLayer):
            put(places[id(layer)], layer.to_float())
    if hasattr(inner, "hf_quantizer"):
        del inner.hf_quantizer
    unmark(inner)
    return model


def install(model: nn.Module, layers: Mapping[str, Scheme], backend: str) -> None:
    """Put empty quantized layers in the named places, for a checkpoint to fill.

    Raises:
        FewstepError: the model has no such Linear or Conv2d.
    """
    split_like(model, layers)
    modules, places = dict(model.named_modules()), places_of(model)
    for name, scheme in layers.items():
        source = modules.get(name)
        if not isinstance(source, nn.Linear | nn.Conv2d):
            raise FewstepError(
                "the quantized checkpoint names a layer that this model does not have",
                value=name,
                hint="Load it with the model class and configuration it was saved from.",
            )
        put(places[id(source)], make_layer(source, scheme, backend))


def _check_model(model: nn.Module) -> None:
    if isinstance(model, nn.Linear | nn.Conv2d):
        raise FewstepError("a single layer cannot be replaced in place", hint="Wrap it: torch.nn.Sequential(layer).")
    if not any(isinstance(m, nn.Linear | nn.Conv2d | QuantLayer) for m in model.modules()):
        hint = "Only these two kinds of layers have low-bit forms here."
        raise FewstepError("the model has no Linear or Conv2d", value=type(model).__name__, hint=hint)
    if getattr(model, "hf_quantizer", None) is not None or any(isinstance(m, QuantLayer) for m in model.modules()):
        raise FewstepError("the model is quantized already", hint="Load the full-precision weights and quantize those.")
    check_bare(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not torch.isfinite(module.weight).all():
            hint = "Check the checkpoint, or whether a cast to half precision overflowed."
            raise FewstepError("a weight holds NaN or infinity", value=name, hint=hint)


def _check_calibration(
    model: nn.Module, scheme: Scheme, method: RoundingMethod, calibration: Calibration | None
) -> None:
    needed = method.calibrated or scheme.smooth or scheme.calibrated
    if calibration is None:
        if needed:
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


def check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    """Raise a FewstepError for a pattern that names no layer."""
    if isinstance(patterns, str):
        raise FewstepError("skip must be a list of patterns", value=patterns, hint=f"Write [{patterns!r}].")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise FewstepError("skip pattern matches no Linear or Conv2d", value=pattern, hint=nearest(pattern, names))


def found_rules(
    model: nn.Module, rules: Sequence[Rule], example: Call | None = None
) -> tuple[list[Rule], tuple[str, ...]]:
    """The rules, those whose patterns find nothing with the layers of their role in an example call; and the roles that
    are still without a layer."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    roles: dict[str, tuple[str, ...]] | None = None
    found, unmatched = [], []
    for rule in rules:
        if rule.role and not any(rule.covers(name) for name in names):
            if roles is None:
                roles = {} if example is None else roles_of(model, example)
            seen = roles.get(rule.role, ())
            unmatched += [] if seen else [rule.role]
            rule = dataclasses.replace(rule, patterns=tuple(map(escape, seen)))
        found.append(rule)
    return found, tuple(unmatched)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def decide(
    name: str, module: nn.Module, scheme: Scheme, rules: Sequence[Rule], owners: Mapping[int, int]
) -> tuple[Scheme | None, str]:
    """Scheme for a module (None keeps it) and the reason, empty when the model's scheme simply applies."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return None, _kept_reason(module)
    if type(module) not in (nn.Linear, nn.Conv2d):
        return None, f"{type(module).__name__} may do more than its base class"
    if owners[id(module.weight)] > 1:
        return None, "its weight is shared with another module"
    for rule in rules:
        if rule.covers(name):
            target = rule.adapt(scheme)
            return target, "" if target == scheme else rule.reason
    return scheme, ""


def _kept_reason(module: nn.Module) -> str:
    kind = type(module).__name__
    if "norm" in kind.lower():
        return "normalization: few parameters, multiplied elementwise"
    if isinstance(module, nn.Embedding):
        return "embedding: a lookup, no product to speed up"
    return "not a Linear or Conv2d"


def _quantize_layer(
    name: str, source: nn.Linear | nn.Conv2d, scheme: Scheme, backend: str, reason: str, method: RoundingMethod,
    statistics: LayerStatistics | None,
) -> tuple[QuantLayer, LayerReport]:  # fmt: skip
    before, linear, on_cuda = own_bytes(source), isinstance(source, nn.Linear), source.weight.is_cuda
    groups = 1 if isinstance(source, nn.Linear) else source.groups
    scheme, method, why = fitting(source.weight.shape, scheme, method, statistics, groups)
    layer = make_layer(source, scheme, backend)
    layer.load(store(source.weight, scheme, method, statistics, groups))
    reason = "; ".join(filter(None, (reason, why)))
    regular = layer.native is not None
    reason = reason or kernel_reason(
        backend, scheme, linear=linear, on_cuda=on_cuda, regular=regular, weights=source.weight.numel()
    )
    row = LayerReport(
        name, "Linear" if linear else "Conv2d", tuple(source.weight.shape), source.weight.numel(), str(scheme),
        describe(scheme, backend, linear=linear, on_cuda=on_cuda, regular=regular), before, own_bytes(layer), reason,
        quantized=True,
    )  # fmt: skip
    return layer, row


def kept_row(name: str, module: nn.Module, reason: str) -> LayerReport:
    """The report's row of a module that keeps its float type."""
    parameters = list(module.parameters(recurse=False))
    size, first = own_bytes(module), parameters[0]
    kind = next((base.__name__ for base in (nn.Linear, nn.Conv2d) if isinstance(module, base)), type(module).__name__)
    bits = f"{first.element_size() * 8} float" if first.is_floating_point() else str(first.dtype)
    weights = sum(parameter.numel() for parameter in parameters)
    return LayerReport(name, kind, tuple(first.shape), weights, bits, "float", size, size, reason)


def mark(model: nn.Module, scheme: Scheme, layers: Mapping[str, Scheme], backend: str) -> None:
    """Tell a model of diffusers or transformers how it is quantized, so that it saves and loads by itself."""
    library = family(model)
    if library == "diffusers":
        from fewstep.quant.storage import attach_quantizer

        attach_quantizer(model, scheme, layers, backend)
    elif library == "transformers":
        from fewstep.quant.encoders import attach_encoder

        attach_encoder(model, scheme, layers, backend)


def unmark(model: Any) -> None:
    """Take back what `mark` noted in the configuration."""
    library = family(model)
    if library == "diffusers" and "quantization_config" in model.config:
        kept = {name: value for name, value in model.config.items() if name != "quantization_config"}
        model._internal_dict = type(model._internal_dict)(kept)
    elif library == "transformers" and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
