"""Whether a low-bit model and what its configuration says of it agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.config import SAVE_AGAIN, QuantConfig, check_seal, seal
from fewstep.quant.first_token import first_token_layers
from fewstep.quant.layer import QuantLayer
from fewstep.quant.steps import tables_of
from fewstep.quant.wrappers import bare

_TYPES = {
    torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.float16: "F16", torch.float32: "F32",
}  # fmt: skip
"""What safetensors calls the types of our buffers."""
_POSITIVE = ("tensor_scale", "smooth", "input_scale")
"""Scales of integer weights may be negative: there is one code more below zero than above."""


def check_files(model: nn.Module, config: QuantConfig, files: Iterable[str | Path] | None) -> None:
    """Compare the low-bit layers of a model that is about to be loaded with the tensors that its files hold.

    Args:
        model: empty, with the layers that its configuration lists.
        files: safetensors files; others are not looked at.

    Raises:
        FewstepError: a layer in low bits that the configuration does not list, one that is not, codes or scales of
            another shape or type, a scheme that no layer has.
    """
    if config.layers and config.scheme not in config.layers:
        raise FewstepError("no layer has the scheme of quantization_config", value=config.scheme, hint=SAVE_AGAIN)
    found = _headers(files or ())
    if not found:
        return
    if any(name.endswith(".schemes_digest") for name in found):  # in older folders there is none
        seal(model)
    layers = {name for name, module in model.named_modules() if isinstance(module, QuantLayer)}
    listed = 0
    for name, buffer in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if path not in layers or leaf == "bias":
            continue
        listed += leaf == "packed"
        wanted = (_TYPES[buffer.dtype], tuple(buffer.shape))
        have = found.get(name) or next((held for key, held in found.items() if key.endswith(f".{name}")), None)
        if have is None:
            raise FewstepError("the quantized checkpoint lacks a tensor", value=name, hint=SAVE_AGAIN)
        if have != wanted:
            raise FewstepError(f"{name} should be {wanted[0]} of shape {wanted[1]}", value=have, hint=SAVE_AGAIN)
    held = sum(name.endswith(".packed") for name in found)
    if held != listed:
        raise FewstepError(f"the file holds {held} low-bit layers, and config.json lists {listed}", hint=SAVE_AGAIN)


def check_values(model: nn.Module) -> None:
    """Refuse a loaded model whose codes are of other schemes or whose scales are no scales (FewstepError)."""
    check_seal(model)
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantLayer):
            continue
        scales: dict[str, Tensor | None] = {key: getattr(layer, key) for key in (*_POSITIVE, "up", "down")}
        scales["scale"] = layer.grid().scale  # those of blocks are bytes
        for key, value in scales.items():
            broken = value is not None and not bool(value.isfinite().all())
            if broken or (value is not None and key in _POSITIVE and bool((value < 0).any())):
                hint = "The file is damaged: save the model again."
                raise FewstepError("a scale is negative or not finite", value=f"{name}.{key}", hint=hint)


def _headers(files: Iterable[str | Path]) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor."""
    from safetensors import safe_open

    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    with ExitStack() as stack:
        for path in (path for path in files if str(path).endswith(".safetensors")):
            file = stack.enter_context(safe_open(str(path), framework="pt"))
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                part = file.get_slice(name)
                found[name] = part.get_dtype(), tuple(part.get_shape())
    return found


def check_saved_right(model: nn.Module, name: str) -> None:
    """Refuse low-bit layers that the model's own configuration does not list: its folder would open with other weights.

    Args:
        name: of the pipeline's component, for the message.

    Raises:
        FewstepError: a part of the model was quantized on its own, or layers were exchanged later.
    """
    model = bare(model)
    layers = {layer: module.scheme for layer, module in model.named_modules() if isinstance(module, QuantLayer)}
    apart, tables = first_token_layers(model), tables_of(model)
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    if not isinstance(config, QuantConfig):
        right = not (layers or apart or tables)
    else:
        right = config.schemes() == layers and set(config.first_token) == set(apart) and config.tables == tables
    if not right:
        raise FewstepError(
            f"the low-bit layers of {name} are not those that its configuration lists, so that its folder would open "
            "with other weights", value=type(model).__name__,
            hint=f"Quantize it as a whole (quantize(pipe.{name}, ...)) and keep parts in float with skip=[...].",
        )  # fmt: skip
