"""What may stand around a network or its layers, and would make a low-bit copy that no folder can hold.

Rules, calibrations and saved folders know layers by the names that the network's own class gives them. Wrappers rename
them (`torch.compile`, `DataParallel`), replace them (LoRA, fused projections, IP adapters) or keep their weights
elsewhere (offloading). A compiled network is unwrapped; all others are refused before anything changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.modules import LAYERS

COMPILED = "_orig_mod"
"""Under this name `torch.compile` keeps the network that it wraps."""

_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
_UNDO = "Undo what was added (pipe.unload_ip_adapter, unfuse_qkv_projections, ...), quantize, and add it again."


def bare(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile(network)`, which compiles anew after its layers change; others as they are."""
    inner = model._modules.get(COMPILED)
    return model if inner is None else bare(inner)


def check_bare(model: nn.Module) -> None:
    """Refuse a network whose layers are renamed, replaced or not in memory.

    Raises:
        FewstepError: what is in the way, and how to take it off.
    """
    check_unwrapped(model)
    for name, module in model.named_modules():
        _check_hooks(name, module)
        if isinstance(module, LAYERS):
            _check_weight(name, cast("Tensor", module.weight))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            hint = "Load the model without low-memory offloading, or quantize before pipe.enable_..._offload()."
            raise FewstepError("a weight is not loaded", value=name, hint=hint)
    _check_layers(model)


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a network whose layers have other names than those of its class (FewstepError)."""
    for name, module in model.named_modules():
        _check_wrapper(name, module)


def family(model: nn.Module) -> str | None:
    """`diffusers` or `transformers` for a network that these can save and open, without importing either."""
    for place, base in (("diffusers.models.modeling_utils", "ModelMixin"),
                        ("transformers.modeling_utils", "PreTrainedModel")):  # fmt: skip
        loaded = sys.modules.get(place)
        if loaded is not None and isinstance(model, getattr(loaded, base)):
            return place.partition(".")[0]
    return None


def _check_wrapper(name: str, module: nn.Module) -> None:
    kind = type(module)
    if COMPILED in module._modules:
        hint = "Quantize first, then compile."
        raise FewstepError("a part of the model is wrapped by torch.compile", value=name, hint=hint)
    if any(base.__name__ in _PARALLEL for base in kind.__mro__):
        hint = "Quantize the network inside (`model.module`) before it is wrapped."
        raise FewstepError(f"the model is wrapped in {kind.__name__}", value=name or None, hint=hint)
    peft = sys.modules.get("peft.tuners.tuners_utils")
    if getattr(module, "peft_config", None) or (peft is not None and isinstance(module, peft.BaseTunerLayer)):
        hint = "Call pipe.fuse_lora() and pipe.unload_lora_weights() first (or only the latter to go without them)."
        raise FewstepError("the model has LoRA adapters loaded", value=name or kind.__name__, hint=hint)


def _check_hooks(name: str, module: nn.Module) -> None:
    """Hooks of accelerate and diffusers that move or cast the weights of the layers they know."""
    layer = isinstance(module, LAYERS)
    if getattr(getattr(module, "_hf_hook", None), "offload", False) or (layer and hasattr(module, "_hf_hook")):
        hint = "Call pipe.remove_all_hooks() or load without device_map, quantize, and place or offload it then."
        raise FewstepError("the weights are placed or offloaded layer by layer", value=name, hint=hint)
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    found = [hook for hook in hooks if layer or hook == "group_offloading"]
    if found:
        hint = "Quantize before enable_group_offload or enable_layerwise_casting."
        raise FewstepError(f"a hook of diffusers moves or casts the weights ({found[0]})", value=name, hint=hint)


def _check_weight(name: str, weight: Tensor) -> None:
    if hasattr(weight, "__tensor_flatten__"):
        hint = "Quantize the plain full-precision weights."
        what = "a weight is quantized or sharded by another library already"
        raise FewstepError(what, value=f"{name}: {type(weight).__name__}", hint=hint)
    if weight.is_floating_point() and weight.element_size() < 2:
        hint = "Load the full-precision weights, or cast the model to bfloat16 if there are no others."
        raise FewstepError("a weight has eight bits already", value=f"{name}: {weight.dtype}", hint=hint)


def _check_layers(model: nn.Module) -> None:
    """Refuse layers that the network's configuration does not describe: its folder would open without them."""
    twin = _rebuilt(model)
    if twin is None:
        return
    own, expected = dict(_layers(model)), dict(_layers(twin))
    for name in own.keys() | expected.keys():
        one, other = own.get(name, "absent"), expected.get(name, "absent")
        if one != other and None not in (one, other):
            raise FewstepError(
                f"layer {name!r} is not as the configuration of {type(model).__name__} says, so that no folder could "
                "hold the low-bit model", value=f"{one} instead of {other}", hint=_UNDO,
            )  # fmt: skip


def _layers(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Names and shapes of the layers; what stands for one layer of the class (`wraps_layer`) counts as it, no shape."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if getattr(module, "wraps_layer", False):
            inside += (f"{name}.",)
            yield name, None
        elif isinstance(module, LAYERS):
            yield name, tuple(cast("Tensor", module.weight).shape)


def _rebuilt(model: Any) -> nn.Module | None:
    """The network without weights, as opening its folder would make it; None if it is of no library that does."""
    kind, library = type(model), family(model)
    if library is None:
        return None
    try:
        with torch.device("meta"):
            twin: nn.Module = kind.from_config(model.config) if library == "diffusers" else kind(model.config)
        return twin
    except Exception:  # a class that cannot be built without memory: what it can hold shows when it is saved
        return None
