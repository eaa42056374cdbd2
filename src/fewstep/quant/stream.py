"""Quantize a model while it is read: a diffusers folder larger than memory becomes a low-bit model layer by layer.

The network is built without weights. Every layer is read from the safetensors file a slice of rows at a time, rounded
to nearest, and kept as codes; its full-precision weight is never in memory as a whole.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, nearest
from fewstep.files import read_json
from fewstep.quant import apply as plain
from fewstep.quant.grids import fit
from fewstep.quant.kernels import check_backend, describe, kernel_reason
from fewstep.quant.layer import QuantLayer
from fewstep.quant.places import make_layer, places_of, put
from fewstep.quant.report import LayerReport, QuantReport, disk_bytes, own_bytes, resident_bytes
from fewstep.quant.scheme import Scheme

SLICE = 1 << 18
"""Weights read and rounded at once."""


def load_quantized(
    folder: str | Path,
    scheme: str | Scheme,
    *,
    skip: Sequence[str] = (),
    rules: Sequence[plain.Rule] = plain.FEW_STEP_RULES,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> tuple[nn.Module, QuantReport]:
    """Read one model of a pipeline (the folder with its config.json) as a quantized model, and its report.

    The layers, their codes and the report are those of reading it in `dtype` and calling `quantize` (rounding to
    nearest); other methods need the whole model. `dtype` is that of what stays in float, `variant` the suffix of
    the files (`fp16`).

    Raises:
        FewstepError: no such model, files that are missing, incomplete or of another model, weights that are not
            finite; whatever `quantize` refuses.
    """
    folder, chosen, backend = Path(folder), Scheme.parse(scheme), check_backend(backend)
    _check_scheme(chosen)
    model = _empty(folder)
    plain.check_patterns(model, skip)
    rules, unmatched = plain.found_rules(model, rules)
    all_rules = [plain.Rule(tuple(skip), None, "kept on request"), *rules] if skip else list(rules)
    parameters = list(model.parameters())
    size = sum(parameter.numel() for parameter in parameters) * dtype.itemsize
    disk, resident = size + disk_bytes(model), size + resident_bytes(model)  # the model holds only buffers now
    with ExitStack() as stack, torch.no_grad():
        rows, layers = _read(model, _Source(folder, variant, stack), chosen, all_rules, backend, dtype)
    plain.mark(model, chosen, layers, backend)
    stored = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    count = sum(layer.weight_shape.numel() for layer in stored)
    bits = 8 * sum(layer.weight_bytes() for layer in stored) / max(count, 1)
    total = sum(parameter.numel() for parameter in parameters)
    after = disk_bytes(model), resident_bytes(model)
    report = QuantReport(str(chosen), backend, tuple(rows), total, disk, after[0], resident, after[1], bits, unmatched)
    return model.eval(), report


def _read(
    model: nn.Module, source: _Source, scheme: Scheme, rules: Sequence[plain.Rule], backend: str, dtype: torch.dtype
) -> tuple[list[LayerReport], dict[str, Scheme]]:
    """Fill an empty model; the rows of its report, and the scheme of each quantized layer."""
    rows: list[LayerReport] = []
    layers: dict[str, Scheme] = {}
    places = places_of(model)
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, module in list(model.named_modules()):
        _fill(model, name, module, source, dtype)
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        target, reason = plain.decide(name, module, scheme, rules, owners)
        if target is None or not isinstance(module, nn.Linear | nn.Conv2d):
            _fill(model, name, module, source, dtype, weight=True)
            rows.append(plain.kept_row(name, module, reason))
            continue
        layer = _layer(name, module, target, backend, source, dtype)
        if layer.weight_shape.numel() > SLICE:
            _give_back()
        put(places[id(module)], layer)
        rows.append(_row(name, layer, target, backend, reason, dtype))
        layers[name] = target
    return rows, layers


class _Source:
    """Tensors of a model folder by name, read from their files when asked for."""

    def __init__(self, folder: Path, variant: str | None, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for path in _weight_files(folder, variant):
            try:
                file = stack.enter_context(safe_open(str(path), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise FewstepError(
                    f"unreadable weights: {error}", value=str(path), hint="Download them again."
                ) from None
            self._files.update(dict.fromkeys(file.keys(), file))

    def shape(self, name: str, expected: Sequence[int]) -> None:
        """Check that a tensor is there and has a shape."""
        if name not in self._files:
            hint = nearest(name, list(self._files)) or "The folder is incomplete: download it again."
            raise FewstepError("the weights lack a tensor of the model", value=name, hint=hint)
        found = tuple(self._files[name].get_slice(name).get_shape())
        if found != tuple(expected):
            hint = "config.json and the weights do not belong together."
            raise FewstepError(f"{name} should have the shape {tuple(expected)}", value=found, hint=hint)

    def whole(self, name: str) -> Tensor:
        """One tensor."""
        return self._files[name].get_tensor(name)

    def slices(self, name: str, rows: int, step: int) -> Iterator[Tensor]:
        """A tensor, some rows at a time."""
        reader = self._files[name].get_slice(name)
        for start in range(0, rows, step):
            yield reader[start : start + step]


def _empty(folder: Path) -> nn.Module:
    import diffusers
    from accelerate import init_empty_weights

    path = folder / "config.json"
    if not path.is_file():
        hint = "Name the folder of one model, such as <pipeline>/unet or <pipeline>/transformer."
        raise FewstepError("this folder holds no config.json", value=str(folder), hint=hint)
    config: dict[str, Any] = read_json(path)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        hint = "Only diffusers models are read in slices; load others whole and call quantize."
        raise FewstepError("config.json names no diffusers model", value=config.get("_class_name"), hint=hint)
    if "quantization_config" in config:
        raise FewstepError("the model is quantized already", hint="Load the full-precision weights and quantize those.")
    with init_empty_weights(include_buffers=False):
        return cast(Any, kind).from_config(config)


def _check_scheme(scheme: Scheme) -> None:
    if scheme.smooth or scheme.rank or scheme.calibrated:
        hint = "Load the model whole and call quantize(model, scheme, calibration=...)."
        raise FewstepError("this scheme needs more than one slice of the weights", value=str(scheme), hint=hint)


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    suffix = f".{variant}" if variant else ""
    index = folder / f"diffusion_pytorch_model.safetensors.index{suffix}.json"
    single = folder / f"diffusion_pytorch_model{suffix}.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        names = sorted(found.name for found in folder.glob("*.safetensors"))
        hint = (
            f"Pass variant=...: there are {', '.join(names)}." if names else "Save or convert it as safetensors first."
        )
        raise FewstepError("this folder holds no safetensors weights", value=single.name, hint=hint)
    weight_map: Mapping[str, str] = read_json(index)["weight_map"]
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for path in files:
        if not path.is_file():
            raise FewstepError("a part of the weights is missing", value=path.name, hint="Download the folder again.")
    return files


def _fill(
    model: nn.Module, name: str, module: nn.Module, source: _Source, dtype: torch.dtype, weight: bool = False
) -> None:
    """Read the tensors of one module; the weight of a layer that may be quantized only if asked for."""
    layer = isinstance(module, nn.Linear | nn.Conv2d)
    prefix = f"{name}." if name else ""
    wide: Sequence[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    if any(part in prefix.split(".") for part in wide):
        dtype = torch.float32
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta and (not layer or key != "weight" or weight):
            source.shape(prefix + key, parameter.shape)
            value = source.whole(prefix + key).to(dtype, copy=True)
            if key == "weight":
                _check_finite(value, prefix + key)
            # swapped, not replaced: a shared parameter stays shared
            torch.utils.swap_tensors(parameter, nn.Parameter(value, parameter.requires_grad))
    persistent = set(module.state_dict(keep_vars=True)) - module._non_persistent_buffers_set
    for key, buffer in list(module.named_buffers(recurse=False)):
        if key in persistent and prefix + key in source._files:
            setattr(module, key, source.whole(prefix + key).to(buffer.dtype, copy=True))


def _layer(
    name: str, module: nn.Linear | nn.Conv2d, scheme: Scheme, backend: str, source: _Source, dtype: torch.dtype
) -> QuantLayer:
    key = f"{name}.weight"
    source.shape(key, module.weight.shape)
    rows, columns = module.weight.shape[0], module.weight.shape[1:].numel()
    step = rows if scheme.per_tensor or scheme.weight_format == "nvfp4" else max(1, SLICE // columns)
    layer = make_layer(module, scheme, backend)
    layer.float_dtype = dtype
    # what stays is allocated before what goes: otherwise the freed slices leave holes that the allocator never fills
    layer.allocate()
    for start, part in zip(range(0, rows, step), source.slices(key, rows, step), strict=True):
        _check_finite(part, key)
        layer.load_rows(start, *fit(part.flatten(1), scheme))
    return layer


def _give_back() -> None:
    """Return freed memory to the system: the allocator of glibc would keep more than a large layer of it."""
    with suppress(OSError, AttributeError):  # other systems, other allocators
        ctypes.CDLL(None).malloc_trim(0)


def _check_finite(weight: Tensor, name: str) -> None:
    if not torch.isfinite(weight).all():
        hint = "Check the checkpoint, or whether a cast to half precision overflowed."
        raise FewstepError("a weight holds NaN or infinity", value=name, hint=hint)


def _row(name: str, layer: QuantLayer, scheme: Scheme, backend: str, reason: str, dtype: torch.dtype) -> LayerReport:
    linear, regular = layer.linear, layer.native is not None
    bias = 0 if layer.bias is None else layer.bias.nbytes
    reason = reason or kernel_reason(
        backend, scheme, linear=linear, on_cuda=False, regular=regular, weights=layer.weight_shape.numel()
    )
    return LayerReport(
        name, "Linear" if linear else "Conv2d", tuple(layer.weight_shape), layer.weight_shape.numel(), str(scheme),
        describe(scheme, backend, linear=linear, on_cuda=False, regular=regular),
        layer.weight_shape.numel() * dtype.itemsize + bias, own_bytes(layer), reason, quantized=True,
    )  # fmt: skip
