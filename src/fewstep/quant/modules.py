"""Layers of a model: which can be quantized, and putting others in their place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip
"""Where torch keeps the hooks that users register on a module's calls."""


Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
Product: TypeAlias = nn.Linear | Convolution
"""Layers that multiply their input by a weight."""
FloatLayer: TypeAlias = Product | nn.Embedding
"""Layers that have a low-bit form."""
PRODUCTS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
LAYERS: tuple[type[nn.Module], ...] = (*PRODUCTS, nn.Embedding)
KINDS = tuple(kind.__name__ for kind in LAYERS)


def kind_of(module: nn.Module) -> str:
    """The name of the base layer that has a low-bit form; of the module's own class where there is none."""
    return next((kind.__name__ for kind in LAYERS if isinstance(module, kind)), type(module).__name__)


def swapped(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution (in, out / groups, ...) as that of a convolution, (out, in / groups, ...);
    and back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def weight_rows(layer: Any) -> Tensor:
    """The weight of a layer with a low-bit form, (outputs, inputs / groups, ...): a scale belongs to each row."""
    transposed = getattr(layer, "transposed", False)
    return swapped(layer.weight, layer.groups) if transposed else layer.weight


def shared_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that several modules hold."""
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {parameter for parameter, count in owners.items() if count > 1}


def kept_reason(module: nn.Module, shared: set[int]) -> str:
    """Why a module has no low-bit form; empty for a layer that has one."""
    kind = type(module).__name__
    if not isinstance(module, LAYERS):
        if "norm" in kind.lower():
            return "normalization: few parameters, multiplied elementwise"
        return "not a Linear, convolution or Embedding"
    if type(module) not in LAYERS:
        return f"{kind} may do more than its base class"
    if not {"weight"} <= set(module._parameters) <= {"weight", "bias"}:
        return "its weight is computed from others at every call (weight norm, pruning, ...)"
    if "forward" in vars(module):
        return "its forward was replaced"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its rows are rescaled at every call"
    return "its weight is shared with another module" if id(module.weight) in shared else ""


def eligible(model: nn.Module) -> list[str]:
    """Names of the Linear layers and convolutions that can be quantized: of exactly these types, weights not shared."""
    shared, found = shared_parameters(model), model.named_modules()
    return [name for name, module in found if isinstance(module, PRODUCTS) and not kept_reason(module, shared)]


def lookups(model: nn.Module) -> list[str]:
    """Names of the embeddings that can be quantized."""
    shared, found = shared_parameters(model), model.named_modules()
    return [name for name, module in found if isinstance(module, nn.Embedding) and not kept_reason(module, shared)]


def copy_to_quantize(model: M) -> M:
    """A copy of a float model to be quantized: modules of its own over the weights of the original's layers.

    Low-bit layers take the place of these layers and only read them, so that a second float network is never in
    memory. Whoever changes the weights in place changes the original's too.
    """
    layers: list[Any] = [model.get_submodule(name) for name in [*eligible(model), *lookups(model)]]
    weights: dict[int, Any] = {
        id(layer.weight): nn.Parameter(layer.weight.detach(), layer.weight.requires_grad) for layer in layers
    }
    return copy.deepcopy(model, weights)


def layer_names(model: nn.Module) -> list[str]:
    """Names of all layers that have a low-bit form."""
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def replace_modules(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Put `make(name, module)` in the place of every module for which it is not None; in all places of a shared one.

    Hooks on the calls of a module go on with the one that replaces it, and their handles still remove them.
    """
    parents: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                parents.setdefault(id(child), []).append((parent, name))
    for name, module in list(model.named_modules()):
        new = make(name, module)
        if new is None:
            continue
        move_hooks(module, new)
        for parent, leaf in parents[id(module)]:
            setattr(parent, leaf, new)


def move_hooks(source: Any, target: nn.Module) -> None:
    """Hand over what users hooked on the calls of a module: the dictionaries themselves, to which handles refer."""
    for name in _HOOKS:
        if getattr(source, name, None):
            setattr(target, name, getattr(source, name))
    target._is_full_backward_hook = source._is_full_backward_hook
