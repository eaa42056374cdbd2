"""The int8 convolution in Triton against bfloat16 and against our own float product of the same codes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from quant_latency import Shape, layer_of

from accelerator import Part, Setting, given_back, layers
from fewstep.quant.kernels import check_backend

BASES = ("bfloat16", "bfloat16 channels last", "bfloat16 channels last compiled")


def parts(setting: Setting) -> dict[str, Part]:
    """A part for every shape of a convolution."""
    return {
        name.replace("/Conv2d", ""): partial(measured, shape, setting)
        for name, kind, shape in layers.shapes(setting.toy)
        if kind == "Conv2d"
    }


def measured(shape: Shape, setting: Setting) -> dict[str, Any]:
    """A row; the kernel's `error` is that of the float product of the same codes (`w8a8`), or it is wrong."""
    check_backend("triton")
    given_back(setting.kind)
    layer, x = layer_of("Conv2d", shape, setting.device)
    half, y = copy.deepcopy(layer).bfloat16(), x.bfloat16()
    last = y.contiguous(memory_format=torch.channels_last)
    given: dict[str, layers.Make] = {"bfloat16": lambda: (half, y), **layers.channels_last(half, y, setting.toy)}
    for scheme in ("w8a8", "w4a8row"):
        given[scheme] = lambda scheme=scheme: (layers.ours(half, scheme, "fewstep"), y)
        given[f"{scheme} Triton"] = lambda scheme=scheme: (layers.ours(half, scheme, "triton"), y)
        given[f"{scheme} Triton channels last"] = lambda scheme=scheme: (layers.ours(half, scheme, "triton"), last)
    return {"shape": shape, **layers.competed(given, x, layer, BASES, setting)}
