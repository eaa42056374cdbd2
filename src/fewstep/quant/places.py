"""Layers of a model and where they hang: making the quantized twin of one, and putting it in its place."""

from __future__ import annotations

from torch import nn

from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantConv2d, QuantLinear
from fewstep.quant.scheme import Scheme

Places = list[tuple[nn.Module, str]]
"""Parents and attribute names under which one module hangs."""


def make_layer(source: nn.Linear | nn.Conv2d, scheme: Scheme, backend: str) -> QuantLayer:
    """The quantized layer that takes the place of a float one; its tensors are empty (on `meta`) until it is loaded."""
    layer = (QuantLinear if isinstance(source, nn.Linear) else QuantConv2d)(source, scheme, backend)  # type: ignore[arg-type]
    return layer.train(source.training)


def places_of(model: nn.Module) -> dict[int, Places]:
    """Places of each module by its id: a shared module has several."""
    places: dict[int, Places] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return places


def put(places: Places, new: nn.Module) -> None:
    """Hang a module in all places of another."""
    for parent, name in places:
        setattr(parent, name, new)
