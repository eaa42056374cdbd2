"""Quantize a model while it is read: a diffusers folder larger than memory becomes a low-bit model layer by layer.

The network is built without weights. Every layer is read from the safetensors file a slice of rows at a time, rounded
to nearest, and kept as codes; its full-precision weight is never in memory as a whole.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, nearest
from fewstep.files import read_json
from fewstep.quant.apply import replace_layers
from fewstep.quant.described import KEPT
from fewstep.quant.grids import fit_grid
from fewstep.quant.kernels import check_backend
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.methods import RoundingMethod, fitting
from fewstep.quant.modules import LAYERS, FloatLayer, weight_rows
from fewstep.quant.report import QuantReport, disk_bytes, resident_bytes
from fewstep.quant.rotation import rotate
from fewstep.quant.rules import Rule, decisions_by_rules, default_rules
from fewstep.quant.scheme import Scheme

SLICE = 1 << 18
"""Weights read and rounded at once."""


def load_quantized(
    folder: str | Path,
    scheme: str | Scheme,
    *,
    skip: Sequence[str] = (),
    rules: Sequence[Rule] | None = None,
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
    folder, chosen = Path(folder), Scheme.parse(scheme)
    check_backend(backend)
    _check_scheme(chosen)
    model = _empty(folder)
    given = decisions_by_rules(model, chosen, skip, default_rules(model) if rules is None else rules)
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    before = size + disk_bytes(model), size + resident_bytes(model)  # the model holds only buffers now
    with ExitStack() as stack, torch.no_grad():
        files = _opened(folder, variant, stack)
        make = partial(_layer, model, files=files, backend=backend, dtype=dtype)
        keep = partial(_fill, model, files=files, dtype=dtype, weight=True)
        report = replace_layers(model, given, backend, make, before=before, keep=keep)
    return model.eval(), report


def read_low_bit(place: Path, scheme: str, options: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The networks in a pipeline's folder that denoise, quantized while they are read, by their components' names.

    Args:
        place: the folder.
        scheme: such as `w4a8`.
        options: of `from_pretrained`: `dtype` and `variant` count.

    Raises:
        FewstepError: no folder, or one with adapters or a plan, which belong to the weights in full precision; and as
            `load_quantized`.
    """
    if not (place / "model_index.json").is_file():
        hint = "Download it first: hf download ID --local-dir FOLDER."
        raise FewstepError("only a folder is quantized while it is read", value=str(place), hint=hint)
    scheduler = place / "scheduler" / "scheduler_config.json"
    own = scheduler.is_file() and read_json(scheduler).get("_class_name") == "PlanScheduler"
    if own or (place / "adapters").is_dir():
        hint = "Open it whole, then call fs.quantize, which knows what becomes of them."
        raise FewstepError("a plan or adapters belong to the weights in full precision", value=str(place), hint=hint)
    names = [f"{kind}{second}" for kind in ("transformer", "unet") for second in ("", "_2")]
    dtype, found = options.get("dtype"), dict[str, nn.Module]()
    for name in names:
        if (place / name / "config.json").is_file():
            told = dtype if isinstance(dtype, torch.dtype) else torch.float32
            model, report = load_quantized(place / name, scheme, dtype=told, variant=options.get("variant"))
            setattr(model, KEPT, report)
            found[name] = model
    return found


_Files = Mapping[str, Any]
"""Name of a tensor -> the open safetensors file that holds it."""


def _opened(folder: Path, variant: str | None, stack: ExitStack) -> _Files:
    from safetensors import SafetensorError, safe_open

    files: dict[str, Any] = {}
    for path in _weight_files(folder, variant):
        try:
            file = stack.enter_context(safe_open(str(path), framework="pt"))
        except (SafetensorError, OSError) as error:
            raise FewstepError(f"unreadable weights: {error}", value=str(path), hint="Download them again.") from None
        files.update(dict.fromkeys(file.keys(), file))
    return files


def _check_shape(files: _Files, name: str, expected: Sequence[int]) -> None:
    """Refuse a tensor that is not there, or of another shape."""
    if name not in files:
        hint = nearest(name, list(files)) or "The folder is incomplete: download it again."
        raise FewstepError("the weights lack a tensor of the model", value=name, hint=hint)
    found = tuple(files[name].get_slice(name).get_shape())
    if found != tuple(expected):
        hint = "config.json and the weights do not belong together."
        raise FewstepError(f"{name} should have the shape {tuple(expected)}", value=found, hint=hint)


def _slices(files: _Files, name: str, rows: int, step: int) -> Iterator[Tensor]:
    """A tensor, some rows at a time."""
    reader = files[name].get_slice(name)
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
    model: nn.Module, name: str, module: nn.Module, files: _Files, dtype: torch.dtype, weight: bool = False
) -> None:
    """Read the tensors of one module; the weight of a layer that may be quantized only if asked for."""
    layer = isinstance(module, LAYERS)
    prefix = f"{name}." if name else ""
    wide: Sequence[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    if any(part in prefix.split(".") for part in wide):
        dtype = torch.float32
    for key, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_meta and (not layer or key != "weight" or weight):
            _check_shape(files, prefix + key, parameter.shape)
            value = files[prefix + key].get_tensor(prefix + key).to(dtype, copy=True)
            if key == "weight":
                _check_finite(value, prefix + key)
            # swapped, not replaced: a shared parameter stays shared
            torch.utils.swap_tensors(parameter, nn.Parameter(value, parameter.requires_grad))
    persistent = set(module.state_dict(keep_vars=True)) - module._non_persistent_buffers_set
    for key, buffer in list(module.named_buffers(recurse=False)):
        if key in persistent and prefix + key in files:
            setattr(module, key, files[prefix + key].get_tensor(prefix + key).to(buffer.dtype, copy=True))


def _layer(
    model: nn.Module, name: str, module: FloatLayer, scheme: Scheme, *, files: _Files, backend: str,
    dtype: torch.dtype,
) -> tuple[QuantLayer, str]:  # fmt: skip
    """The twin of a layer on disk."""
    _fill(model, name, module, files, dtype)
    key = f"{name}.weight"
    _check_shape(files, key, module.weight.shape)
    rows, columns = module.weight.shape[0], module.weight.shape[1:].numel()
    scheme, _, why = fitting(weight_rows(module).shape, scheme, RoundingMethod(), None, getattr(module, "groups", 1))
    layer = make_layer(module, scheme, backend)
    # a transposed convolution's outputs are not the rows of its file
    whole = scheme.per_tensor or scheme.weight_format == "nvfp4" or getattr(module, "transposed", False)
    step = rows if whole else max(1, SLICE // columns)
    layer.float_dtype = dtype
    # what stays is allocated before what goes: otherwise the freed slices leave holes that the allocator never fills
    layer.allocate()
    for start, part in zip(range(0, rows, step), _slices(files, key, rows, step), strict=True):
        _check_finite(part, key)
        held = layer.as_held(part)
        layer.load_rows(start, *fit_grid((rotate(held, 1) if scheme.hadamard else held).flatten(1), scheme))
        del part
    if layer.weight_shape.numel() > SLICE:
        _give_back()
    return layer, why


def _give_back() -> None:
    """Return freed memory to the system: the allocator of glibc would keep more than a large layer of it."""
    with suppress(OSError, AttributeError):  # other systems, other allocators
        ctypes.CDLL(None).malloc_trim(0)


def _check_finite(weight: Tensor, name: str) -> None:
    if not torch.isfinite(weight).all():
        hint = "Check the checkpoint, or whether a cast to half precision overflowed."
        raise FewstepError("a weight holds NaN or infinity", value=name, hint=hint)
