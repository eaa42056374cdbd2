"""Which weights these are: a short text that the same network has in float32, float16 and bfloat16.

Rounding to another precision changes every value, so no hash of values can survive it. A fingerprint therefore has two
parts, `hash-sketch`: a hash of names, shapes and a few values of every tensor, which is compared first, and a few
projections of these values, which are compared within the rounding error where the precisions differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError

PROJECTIONS = 8
STEP = 1e-3
"""Unit of the sketch, relative to the root of the sum of squares; bfloat16 moves a projection by a fifth of it."""

_PRECISIONS = {"b": torch.bfloat16, "h": torch.float16}


def fingerprint(model: nn.Module) -> str:
    """The fingerprint of a network's weights; LoRA adapters on top do not count, offloaded weights do.

    Takes milliseconds for billions of parameters. Compare with `same_weights`.

    Raises:
        FewstepError: weights that are not there (meta tensors that nothing offloaded).
    """
    state = model.state_dict()
    if any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in state.values()):
        state = {**state, **_offloaded(model)}
    names = {base_name(name): tensor for name, tensor in state.items()}
    return fingerprint_of({name: tensor for name, tensor in names.items() if name is not None})


def fingerprint_of(tensors: Mapping[str, Any]) -> str:
    """The fingerprint of named tensors; other values are passed over.

    `NAMES VALUES PRECISION - SKETCH`: eight digits of names and shapes, seven of the values, the shortest precision
    that holds them all (b, h or f), and the projections.
    """
    names, exact, kept = hashlib.sha256(), hashlib.sha256(), []
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, Tensor):
            continue
        names.update(f"{name}{tuple(tensor.shape)}".encode())
        values = _few_values(name, tensor)
        exact.update(values.numpy().tobytes())
        if values.is_floating_point():
            kept.append(values)
    values = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.float64)
    short = (key for key, dtype in _PRECISIONS.items() if torch.equal(values, values.to(dtype).double()))
    return f"{names.hexdigest()[:8]}{exact.hexdigest()[:7]}{next(short, 'f')}-{_sketch(values)}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, stored in the same or in different precision.

    Between precisions, changes below about one per cent of all weights go unnoticed.
    """
    if one == other:
        return True
    (head, _, sketch), (head_other, _, sketch_other) = one.partition("-"), other.partition("-")
    if len(head) != 16 or len(sketch) != 4 * PROJECTIONS or len(sketch) != len(sketch_other):
        return False
    if head[:8] != head_other[:8] or head[15:] == head_other[15:]:
        return False
    try:
        pairs = zip(_unpacked(sketch), _unpacked(sketch_other), strict=True)
        return all(abs(left - right) <= 2 for left, right in pairs)
    except ValueError:
        return False


def base_name(name: str) -> str | None:
    """The name a tensor had before peft or torch.compile wrapped its module; None for adapters' own tensors."""
    return None if ".lora_" in name else name.replace("_orig_mod.", "").replace(".base_layer.", ".")


def _few_values(name: str, tensor: Tensor, count: int = 16) -> Tensor:
    """Some values on the CPU: floats as float64, everything else as bytes."""
    if tensor.is_meta:
        hint = "Load them, or offload them with accelerate, which keeps them."
        raise FewstepError("these weights are not in memory (meta device)", value=name, hint=hint)
    flat = tensor.detach().reshape(-1)
    if flat.is_floating_point() and flat.element_size() == 1:  # float8: torch does not index it
        flat = flat.view(torch.uint8)
    # float32, as in stored fingerprints; it has no room for the places in tensors beyond 2^24 values
    precise = torch.float64 if flat.numel() > 1 << 24 else torch.float32
    picks = torch.linspace(0, max(flat.numel() - 1, 0), min(count, flat.numel()), dtype=precise).long()
    values = flat[picks.to(flat.device)].cpu()
    return values.double() if values.is_floating_point() else values


def _sketch(values: Tensor) -> str:
    """Projections of the values on random signs, four hexadecimal digits each, in units of `STEP`.

    Values enter by their fourth root, so that biases and norms of size one do not drown weights of a hundredth.
    """
    soft = 1e-4
    bent = values.sign() * ((values.abs() + soft) ** 0.25 - soft**0.25)
    signs = torch.randint(0, 2, (PROJECTIONS, len(values)), generator=torch.Generator().manual_seed(0)) * 2 - 1
    size = float(bent.norm()) or 1.0
    sums = (signs.double() @ bent / size / STEP).nan_to_num(0.0).round().clamp(-32000, 32000)
    return "".join(f"{int(n) + 32768:04x}" for n in sums)


def _unpacked(sketch: str) -> list[int]:
    return [int(sketch[4 * k : 4 * k + 4], 16) for k in range(PROJECTIONS)]


def _offloaded(model: nn.Module) -> dict[str, Tensor]:
    """Weights that hooks of accelerate keep elsewhere, by their names in the model."""
    found = {}
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            kept: Any = getattr(one, "weights_map", None) or {}
            for name, tensor in module.state_dict(keep_vars=True).items():
                if isinstance(tensor, Tensor) and tensor.is_meta and name in kept:
                    found[f"{path}.{name}" if path else name] = kept[name]
    return found
