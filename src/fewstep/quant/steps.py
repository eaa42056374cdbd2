"""Bits per layer and per step: a row of a plan names the table of bits that the network runs with.

A layer whose scheme differs between tables is stored once per distinct scheme, all others once; schemes that differ in
their activations alone (`w4a4`, `w4a8`, `w4a16`) share one set of codes, so that bits per step then cost no bytes.
`Row.network` is `bits:K` for table K (see `fewstep.variants`); without a name a network runs table 0.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.layer import QuantLayer
from fewstep.quant.modules import LAYERS
from fewstep.quant.scheme import Scheme
from fewstep.variants import Changed, kind

SHARED = ("packed", "scale", "tensor_scale", "zero", "smooth", "up", "down", "bias")
"""Tensors of a layer that do not depend on how its inputs are quantized."""


class PerStepLayer(nn.Module):
    """One layer in several precisions, of which the running table chooses one.

    tables: index into `options` for each table.
    """

    wraps_layer = True  # see fewstep.quant.wrappers

    def __init__(self, options: Sequence[nn.Module], tables: Sequence[int]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)
        self.tables, self.active = tuple(tables), 0
        self.register_state_dict_post_hook(_without_shared)
        self.register_load_state_dict_pre_hook(_with_shared)

    def tied(self) -> dict[int, int]:
        """The option whose weight each other one uses, by their numbers; known from their schemes."""
        seen: dict[Scheme, int] = {}
        found = {}
        for k, option in enumerate(self.options):
            if isinstance(option, QuantLayer):
                first = seen.setdefault(_storage(option.scheme), k)
                if first != k:
                    found[k] = first
        return found

    def tie(self) -> None:
        """Let options of equal weight schemes hold the same tensors."""
        for k, first in self.tied().items():
            for name in SHARED:
                if name == "bias":
                    self.options[k].register_parameter(name, self.options[first].bias)  # type: ignore[arg-type]
                else:
                    setattr(self.options[k], name, getattr(self.options[first], name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerStepLayer:
        super()._apply(fn, recurse)
        self.tie()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the active option."""
        output: Tensor = self.options[self.tables[self.active]](*args, **kwargs)
        return output

    @property
    def weight(self) -> Tensor:
        """The weight of the active option, for code that asks a layer for its weight or its type and device."""
        return self.options[self.tables[self.active]].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the active option."""
        return self.options[self.tables[self.active]].bias  # type: ignore[return-value]


def tie(model: nn.Module) -> int:
    """Let options of equal weight schemes share their tensors; returns how many do. After loading, or quantizing."""
    stepped = [module for module in model.modules() if isinstance(module, PerStepLayer)]
    for module in stepped:
        module.tie()
    return sum(len(module.tied()) for module in stepped)


def _storage(scheme: Scheme) -> Scheme:
    """What a scheme says about weights alone."""
    return dataclasses.replace(scheme, activation_bits=16, activation_format="dynamic", activation_group=None)


def _without_shared(module: PerStepLayer, state: dict[str, Any], prefix: str, _: Any) -> None:
    for k in module.tied():
        for name in SHARED:
            state.pop(f"{prefix}options.{k}.{name}", None)


def _with_shared(module: PerStepLayer, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for k, first in module.tied().items():
        for name in SHARED:
            source = f"{prefix}options.{first}.{name}"
            if source in state:
                state.setdefault(f"{prefix}options.{k}.{name}", state[source])


def tables_of(model: nn.Module) -> dict[str, list[int]]:
    """Tables of every layer that has several precisions: the part of the configuration that rebuilds them."""
    return {name: list(m.tables) for name, m in model.named_modules() if isinstance(m, PerStepLayer)}


def copy_layers(model: nn.Module, tables: Mapping[str, Sequence[int]]) -> None:
    """Put float layers in several copies in the named places, for quantized ones to replace.

    Args:
        tables: for each layer the copy that each table runs.

    Raises:
        FewstepError: the model has no such layer, or the tables are malformed.
    """
    for name, choice in tables.items():
        if not choice or sorted(set(choice)) != list(range(len(set(choice)))):
            raise FewstepError(f"malformed tables of bits of {name}", value=choice, hint="Save the model again.")
        layer = _layer(model, name)
        model.set_submodule(name, PerStepLayer(_copies(layer, len(set(choice))), choice).train(layer.training))


@kind("bits")
def bits(model: nn.Module, numbers: tuple[float, ...]) -> Changed:
    """The network with table K of its bits."""
    layers = [module for module in model.modules() if isinstance(module, PerStepLayer)]
    count = len(layers[0].tables) if layers else 1
    if len(numbers) != 1 or numbers[0] not in range(count):
        hint = f"The network has the tables 0 to {count - 1}." if count > 1 else "It has one."
        raise FewstepError("there is no table of bits of this number", value=numbers, hint=hint)
    return _running(layers, int(numbers[0]))


@contextmanager
def _running(layers: Sequence[PerStepLayer], table: int) -> Iterator[None]:
    with ExitStack() as after:
        for layer in layers:
            after.callback(setattr, layer, "active", layer.active)
            layer.active = table
        yield


def _copies(layer: nn.Module, count: int) -> list[nn.Module]:
    """The layer several times over the same weight, but with parameters of their own: none counts as shared."""
    found = []
    for _ in range(count):
        twin = copy.copy(layer)
        twin._parameters = {
            name: None if p is None else nn.Parameter(p.data if name == "weight" else p.data.clone(), p.requires_grad)
            for name, p in layer._parameters.items()
        }
        found.append(twin)
    return found


def _layer(model: nn.Module, name: str) -> nn.Module:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, LAYERS):
        hint = "Load it with the model class and configuration it was saved from."
        raise FewstepError("tables of bits name a layer that this model does not have", value=name, hint=hint)
    return layer
