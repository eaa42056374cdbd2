"""Bits per layer and per step: a row of a plan names the table of bits that the network runs with.

A layer whose scheme differs between tables is stored once per distinct scheme, all others once; schemes that differ in
their activations alone (`w4a4`, `w4a8`, `w4a16`) share one set of codes, so that bits per step then cost no bytes.
`Row.network` is `bits:K` for table K (see `fewstep.variants`); without a name a network runs table 0.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.calibration import Calibration
from fewstep.quant.layer import QuantLayer
from fewstep.quant.mixed import quantize_mixed
from fewstep.quant.report import QuantReport, disk_bytes, resident_bytes
from fewstep.quant.scheme import Scheme
from fewstep.quant.wrappers import bare
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

    def forward(self, x: Tensor) -> Tensor:
        """As the active option."""
        return self.options[self.tables[self.active]](x)

    @property
    def weight(self) -> Tensor:
        """The weight of the active option, for code that asks a layer for its weight or its type and device."""
        return self.options[self.tables[self.active]].weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the active option."""
        return self.options[self.tables[self.active]].bias  # type: ignore[return-value]


def quantize_stepped(model: nn.Module, tables: Sequence[Mapping[str, str]], **options: Any) -> QuantReport:
    """Quantize a model in place with several tables of schemes, for plans whose rows name `bits:0`, `bits:1`, ...

    Args:
        tables: scheme, or `float`, of every layer, as `quantize_mixed` takes one of them.
        options: of `quantize_mixed`; a calibration of the model before counts for all copies of a layer.

    Raises:
        FewstepError: no table, tables of different layers, or as `quantize_mixed`.
    """
    if not tables or any(set(table) != set(tables[0]) for table in tables):
        raise FewstepError("tables of bits must be of the same layers", value=len(tables), hint="Give at least one.")
    model = bare(model)
    flat: dict[str, str] = {}
    for name in tables[0]:
        wanted = [table[name] for table in tables]
        distinct = list(dict.fromkeys(wanted))
        if len(distinct) == 1:
            flat[name] = distinct[0]
            continue
        _put(
            model, name, PerStepLayer(_copies(_layer(model, name), len(distinct)), [distinct.index(w) for w in wanted])
        )
        flat |= {f"{name}.options.{k}": scheme for k, scheme in enumerate(distinct)}
    if options.get("calibration") is not None:
        options["calibration"] = _for_copies(options["calibration"], flat)
    report = quantize_mixed(model, flat, **options)
    if not tie(model):
        return report
    return dataclasses.replace(report, disk_after=disk_bytes(model), resident_after=resident_bytes(model))


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


def _for_copies(calibration: Calibration, names: Mapping[str, str]) -> Calibration:
    """Statistics under the names of the copies that share them."""
    found = {name: calibration.get(re.sub(r"\.options\.\d+$", "", name)) for name in names}
    return dataclasses.replace(calibration, layers={name: seen for name, seen in found.items() if seen is not None})


def tables_of(model: nn.Module) -> dict[str, list[int]]:
    """Tables of every layer that has several precisions: the part of the configuration that rebuilds them."""
    return {name: list(m.tables) for name, m in model.named_modules() if isinstance(m, PerStepLayer)}


def install_stepped(model: nn.Module, tables: Mapping[str, Sequence[int]]) -> None:
    """Put float layers in several copies in the named places, for quantized ones to replace.

    Raises:
        FewstepError: the model has no such layer, or the tables are malformed.
    """
    for name, choice in tables.items():
        if not choice or sorted(set(choice)) != list(range(len(set(choice)))):
            raise FewstepError(f"malformed tables of bits of {name}", value=choice, hint="Save the model again.")
        layer = _layer(model, name)
        _put(model, name, PerStepLayer(_copies(layer, len(set(choice))), choice).train(layer.training))


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
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        hint = "Load it with the model class and configuration it was saved from."
        raise FewstepError("tables of bits name a layer that this model does not have", value=name, hint=hint)
    return layer


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
