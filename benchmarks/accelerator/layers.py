"""Single layers of SD 1.5, SDXL and FLUX in low bits against bfloat16, as it is and compiled: ours, torchao, quanto."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from clock import compared, in_turn
from quant_latency import SHAPES, Shape, layer_of
from torch import Tensor, nn

from accelerator import LOST, Part, Setting, given_back, unmeasured
from fewstep.quant import quantize

OURS = ("w8a8", "w4a8", "w4a8row", "w4a16", "fp8afp8")
COMPILED = ("bfloat16", "w8a8", "w4a8", "fp8afp8", "torchao w8a8", "torchao fp8afp8")
"""What is also measured compiled: each takes its seconds to compile, for every shape."""
BASES = ("bfloat16", "bfloat16 compiled")
Make = Callable[[], tuple[nn.Module, Tensor]]
"""A way to compute the layer, and the input as it wants it."""


def parts(setting: Setting) -> dict[str, Part]:
    """A part for every shape."""
    return {name: partial(measured, kind, shape, setting) for name, kind, shape in shapes(setting.toy)}


def shapes(toy: bool) -> Iterator[tuple[str, str, Shape]]:
    """Names, kinds and sizes of the layers; of a toy one no size is above 64, and each family has one of a kind."""
    for family, kinds in SHAPES.items():
        for kind, sizes in kinds.items():
            for name, shape in list(sizes.items())[: 1 if toy else None]:
                small = tuple(min(size, limit) for size, limit in zip(shape, (8, 64, 64, 3), strict=False))
                yield f"{family}/{kind}/{slug(name)}", kind, small if toy else shape


def slug(name: str) -> str:
    """A name as part of a path."""
    return "-".join(name.replace(",", "").split())


def measured(kind: str, shape: Shape, setting: Setting) -> dict[str, Any]:
    """A row: a layer of this shape in every arithmetic."""
    given_back(setting.kind)
    layer, x = layer_of(kind, shape, setting.device)
    return {"shape": shape, **competed(ways(layer, x, setting.toy), x, layer, BASES, setting)}


def ways(layer: nn.Module, x: Tensor, toy: bool) -> dict[str, Make]:
    """Every arithmetic by name; inputs are bfloat16."""
    y, half = x.bfloat16(), copy.deepcopy(layer).bfloat16()
    plain: dict[str, Callable[[], nn.Module]] = {"bfloat16": lambda: half}
    plain |= {scheme: partial(ours, half, scheme) for scheme in OURS}
    if isinstance(layer, nn.Linear):
        plain |= {f"torchao {name}": partial(torchao, half, name) for name in ("w8a8", "fp8afp8", "w8a16")}
    plain |= {f"quanto {name}": partial(quanto, half, name) for name in ("w8a16", "w4a16", "fp8a16")}
    found: dict[str, Make] = {}
    for name, make in plain.items():
        found[name] = lambda make=make: (make(), y)
        if name in COMPILED:
            found[f"{name} compiled"] = lambda make=make: (compiled(make(), toy), y)
    return found | (channels_last(half, y, toy) if y.dim() == 4 else {})


def channels_last(half: nn.Module, y: Tensor, toy: bool) -> dict[str, Make]:
    """The convolution as tensor cores like it: what a careful user of bfloat16 has."""
    last = torch.channels_last
    flat, z = copy.deepcopy(half).to(memory_format=last), y.contiguous(memory_format=last)
    return {
        "bfloat16 channels last": lambda: (flat, z),
        "bfloat16 channels last compiled": lambda: (compiled(copy.deepcopy(flat), toy), z),
    }


def ours(layer: nn.Module, scheme: str, backend: str = "auto") -> nn.Module:
    """The layer in one of our schemes."""
    model = nn.Sequential(copy.deepcopy(layer))
    quantize(model, scheme, rules=(), backend=backend)
    return model


def torchao(layer: nn.Module, name: str) -> nn.Module:
    """The layer as torchao quantizes it."""
    from torchao import quantization as library

    config = {
        "w8a8": library.Int8DynamicActivationInt8WeightConfig,
        "fp8afp8": library.Float8DynamicActivationFloat8WeightConfig,
        "w8a16": library.Int8WeightOnlyConfig,
    }[name]
    model = nn.Sequential(copy.deepcopy(layer))
    library.quantize_(model, config())
    return model


def quanto(layer: nn.Module, name: str) -> nn.Module:
    """The layer as quanto quantizes it, which needs no calibration for its weights alone."""
    from optimum import quanto as library

    kind = {"w8a16": library.qint8, "w4a16": library.qint4, "fp8a16": library.qfloat8}[name]
    model = nn.Sequential(copy.deepcopy(layer))
    library.quantize(model, weights=kind)
    library.freeze(model)
    return model


def compiled(model: nn.Module, toy: bool) -> Any:
    """The whole of it as one graph; at toy sizes no code is generated for it."""
    return torch.compile(model, fullgraph=True, dynamic=False, backend="eager" if toy else "inductor")


@torch.no_grad()
@torch._dynamo.config.patch(recompile_limit=64)  # each competitor is a compilation of the same `forward`
def competed(
    given: Mapping[str, Make], x: Tensor, layer: nn.Module, bases: tuple[str, ...], setting: Setting
) -> dict[str, Any]:
    """Times in turns, ratios, and how far each output is from that of the float32 layer (relative).

    A time is what a caller waits, the host's launches included: a network of small layers waits for these too. Whatever
    a library raises on this device is kept as the reason why it has no number.
    """
    truth, calls, errors, why = layer(x).float(), {}, {}, {}
    for name, make in given.items():
        try:
            model, y = make()
            off = model(y).float() - truth
        except Exception as error:
            if LOST in str(error):
                raise
            why[name] = unmeasured(error)
            continue
        errors[name] = float(off.norm() / truth.norm())
        calls[name] = partial(model, y)
    return {**compared(in_turn(calls, setting.rounds, setting.device), bases), "error": errors, "why": why}
