"""An ONNX graph as a torch module: convolutions and dense layers are `nn.Conv2d` and `nn.Linear`, the rest functions.

Only the operators of the terrain network (opset 18); another graph fails with the name of the first that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    sizes = [int(n) for n in shape]
    return x.reshape([x.shape[k] if n == 0 and not allowzero else n for k, n in enumerate(sizes)])


def _shape(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end])


def _split(x: Tensor, sizes: Tensor | None = None, axis: int = 0, num_outputs: int = 0) -> tuple[Tensor, ...]:
    return x.split([int(n) for n in sizes], axis) if sizes is not None else x.chunk(num_outputs, axis)


def _resize(
    x: Tensor, roi: Any, scales: Tensor | None, sizes: Tensor | None = None, mode: str = "nearest", **_: Any
) -> Tensor:
    if mode != "nearest":
        raise NotImplementedError(f"Resize by {mode}")
    if sizes is None:
        sizes = [int(n * float(scale)) for n, scale in zip(x.shape, scales, strict=True)]
    side = [int(n) for n in sizes[2:]]
    return F.interpolate(x, size=side, mode="nearest")


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(a) for a in axes))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(int(a) for a in axes.flatten()):
        x = x.unsqueeze(axis)
    return x


def _pool(x: Tensor, kernel_shape: list[int], strides: list[int], **_: Any) -> Tensor:
    return F.avg_pool2d(x, kernel_shape, strides)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(low, high)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Mul": torch.mul, "Sub": torch.sub, "Div": torch.div, "Pow": torch.pow, "Sqrt": torch.sqrt,
    "Log": torch.log, "Cos": torch.cos, "Sin": torch.sin, "Sigmoid": torch.sigmoid, "Reciprocal": torch.reciprocal,
    "Clip": _clip, "Reshape": _reshape, "Shape": _shape, "Split": _split, "Resize": _resize, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "AveragePool": _pool,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Einsum": lambda *parts, equation: torch.einsum(equation, *parts),
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "InstanceNormalization": lambda x, scale, bias, epsilon: F.instance_norm(x, None, None, scale, bias, eps=epsilon),
}  # fmt: skip


class OnnxModule(nn.Module):
    """The graph of a file; call it with the graph's inputs in order.

    Args:
        file: the ONNX file.
    """

    def __init__(self, file: str | Path) -> None:
        import onnx
        from onnx import numpy_helper

        super().__init__()
        graph = onnx.load(str(file)).graph
        values = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
        self.inputs = [entry.name for entry in graph.input if entry.name not in values]
        self.outputs = [entry.name for entry in graph.output]
        self.layers = nn.ModuleDict()
        self.nodes: list[tuple[str, list[str], list[str], dict[str, Any]]] = []
        taken: set[str] = set()
        for node in graph.node:
            options = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
            kind, given = node.op_type, list(node.input)
            if kind in ("Conv", "Gemm") and given[1] in values:
                name = re.sub(r"\.weight$", "", given[1]).replace(".", "_")
                self.layers[name] = _layer(kind, [values.get(k) for k in given[1:]], options)
                taken |= set(given[1:])
                kind, given, options = "layer", given[:1], {"name": name}
            elif kind not in OPERATORS:
                raise NotImplementedError(f"the operator {kind}")
            self.nodes.append((kind, given, list(node.output), options))
        self.constants = {name: value for name, value in values.items() if name not in taken}

    def forward(self, *given: Tensor) -> Tensor:
        """The first output of the graph."""
        known: dict[str, Any] = {**self.constants, **dict(zip(self.inputs, given, strict=True)), "": None}
        for kind, names, outputs, options in self.nodes:
            arguments = [known[name] for name in names]
            if kind == "layer":
                found = self.layers[options["name"]](*arguments)
            else:
                found = OPERATORS[kind](*arguments, **options)
            known.update(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))
        return known[self.outputs[0]]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _layer(kind: str, weights: list[Tensor | None], options: dict[str, Any]) -> nn.Module:
    weight, bias = weights[0], weights[1] if len(weights) > 1 else None
    assert weight is not None
    layer: Any
    if kind == "Gemm":
        if not options.get("transB") or options.get("transA"):
            weight = weight.T
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    elif weight.ndim == 4:
        pads = options.get("pads", [0, 0, 0, 0])
        layer = nn.Conv2d(
            weight.shape[1] * options.get("group", 1), weight.shape[0], tuple(weight.shape[2:]),
            tuple(options.get("strides", (1, 1))), tuple(pads[:2]), tuple(options.get("dilations", (1, 1))),
            options.get("group", 1), bias is not None,
        )  # fmt: skip
    else:
        pads = options.get("pads", [0, 0])
        layer = nn.Conv1d(
            weight.shape[1] * options.get("group", 1), weight.shape[0], weight.shape[2],
            tuple(options.get("strides", (1,))), tuple(pads[:1]), tuple(options.get("dilations", (1,))),
            options.get("group", 1), bias is not None,
        )  # fmt: skip
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer
