"""What carries inputs that 8 bits cannot: the cheapest of smoothing, a rotation and 16-bit inputs, layer by layer.

A scale per group of inputs is no candidate: it costs the product of integers, as 16-bit inputs do, and rounds besides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.quant.calibration import Calibration
from fewstep.quant.calls import Call
from fewstep.quant.fidelity import decibels
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.methods import RoundingMethod, fitting, store
from fewstep.quant.modules import Product, weight_rows
from fewstep.quant.patches import dimensions
from fewstep.quant.rotation import block
from fewstep.quant.scheme import Scheme
from fewstep.quant.statistics import LayerStatistics

SUSPECT = 20.0
"""dB, below which the weights of a layer make an outlier among its inputs likely; see `expected_left`."""
UNUSED = 1e-4
"""Share of the root mean square below which a column counts as that of an input that is not used."""


class Remedy(NamedTuple):
    """What a layer gets, why, and dB of its product that rounding its inputs leaves."""

    scheme: Scheme
    reason: str
    left: float


def wide(scheme: Scheme) -> Scheme:
    """The scheme with 16-bit inputs."""
    return dataclasses.replace(scheme, activation_bits=16, activation_group=None)


def candidates(layer: Product, scheme: Scheme) -> dict[str, Scheme]:
    """The remedies that a layer can carry and that cost less than 16-bit inputs, cheapest first."""
    known = {"smoothing": dataclasses.replace(scheme, smooth=True),
             "a rotation": dataclasses.replace(scheme, hadamard=True)}  # fmt: skip
    most = cost(layer, wide(scheme))
    able = {what: one for what, one in known.items() if one != scheme and _carries(layer, one)}
    cheaper = {what: one for what, one in able.items() if cost(layer, one) < most}
    return dict(sorted(cheaper.items(), key=lambda entry: cost(layer, entry[1])))


def cost(layer: Product, scheme: Scheme) -> tuple[bool, int, int]:
    """Whether the product is in float, passes over the inputs before it, bytes beside the codes; less is cheaper.

    Counted and not timed, so that a network gets the same layers on every machine. The first decides: a product of
    integers takes a third of the time of one in float (`results/quant-latency.json`).
    """
    mixed = block(weight_rows(layer).shape[1]).bit_length() - 1 if scheme.hadamard else 0
    passes = (scheme.activation_bits == 8) + scheme.smooth + mixed
    return not scheme.integer_product, passes, 4 * weight_rows(layer).shape[1] * scheme.smooth


def _carries(layer: Any, scheme: Scheme) -> bool:
    seen = LayerStatistics(0, torch.empty(0), torch.empty(0))
    groups = getattr(layer, "groups", 1)
    return fitting(weight_rows(layer).shape, scheme, RoundingMethod(), seen, groups)[0] == scheme


@torch.no_grad()
def chosen(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call], target: float,
    seen: Mapping[str, LayerStatistics],
) -> dict[str, Remedy]:  # fmt: skip
    """For every named layer the cheapest remedy with which rounding its inputs leaves `target` dB of its product.

    The layer is run in low bits with each, on the inputs of the calls. Its weights are rounded too, since smoothing
    and rotations change them: what counts against a remedy is the noise beyond that of 16-bit inputs.

    Args:
        model: in float; it is only run.
        schemes: of the layers without a remedy.
        calls: of the model.
        target: dB.
        seen: what layers are smoothed by; one that is not in it is not smoothed.
    """
    left = _left(model, schemes, calls, seen)
    found = {}
    for name, scheme in schemes.items():
        tried = left.get(name, {})
        good = next((what for what, db in tried.items() if db >= target), None)
        said = " and ".join(f"{what} {db:.0f} dB" for what, db in tried.items())
        if good is not None:
            better = candidates(model.get_submodule(name), scheme)[good]  # type: ignore[arg-type]
            found[name] = Remedy(better, f"{good} leaves {tried[good]:.0f} dB and keeps 8 bits", tried[good])
        else:
            why = f"{said} of {target:.0f}: 16-bit inputs" if tried else "16-bit inputs, which cost no more here"
            found[name] = Remedy(wide(scheme), why, 200.0)
    return found


def _left(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call], seen: Mapping[str, LayerStatistics]
) -> dict[str, dict[str, float]]:
    """By layer and remedy: dB of the product that rounding the inputs leaves, cheapest remedy first."""
    sums: dict[str, dict[str, float]] = {}
    signals: dict[str, float] = {}

    def compare(name: str, tried: Mapping[str, Scheme]) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
            bias = 0.0 if layer.bias is None else layer.bias.detach().view(-1, *(1,) * dimensions(layer))
            signals[name] = signals.get(name, 0.0) + float((output - bias).double().square().sum())
            weights = _noise(layer, wide(schemes[name]), None, args[0], output)
            for what, scheme in tried.items():
                more = _noise(layer, scheme, seen.get(name), args[0], output) - weights
                found = sums.setdefault(name, {})
                found[what] = found.get(what, 0.0) + more

        return hook

    with ExitStack() as stack:
        for name in schemes:
            layer: Any = model.get_submodule(name)
            tried = {w: s for w, s in candidates(layer, schemes[name]).items() if not s.smooth or name in seen}
            if tried:
                stack.callback(layer.register_forward_hook(compare(name, tried)).remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
    return {
        name: {what: decibels(signals[name], max(noise, 0.0)) for what, noise in row.items()}
        for name, row in sums.items()
    }


def _noise(layer: Any, scheme: Scheme, statistics: LayerStatistics | None, x: Tensor, output: Tensor) -> float:
    """Energy of the error of the layer in low bits."""
    low = _rounded(layer, dataclasses.replace(scheme, rank=0), statistics)
    return float((low(x) - output).double().square().sum())


def _rounded(layer: Any, scheme: Scheme, statistics: LayerStatistics | None) -> QuantLayer:
    """The layer in low bits, rounded to nearest."""
    groups = getattr(layer, "groups", 1)
    scheme, how, _ = fitting(weight_rows(layer).shape, scheme, RoundingMethod(), statistics, groups)
    low = make_layer(layer, scheme)
    low.load(store(weight_rows(layer).detach(), scheme, how, statistics, groups))
    return low


@torch.no_grad()
def largest_inputs(model: nn.Module, names: Iterable[str], calls: Sequence[Call]) -> Calibration:
    """What smoothing needs of the inputs of the named layers: the largest magnitude per feature or channel."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            axis = x.ndim - 1 - dimensions(layer)
            most = x.detach().abs().float().amax([d for d in range(x.ndim) if d != axis])
            found[name] = most if name not in found else torch.maximum(found[name], most)

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
    layers = {name: LayerStatistics(0, most, torch.empty(0)) for name, most in found.items()}
    return Calibration(layers, 0, (), len(calls))


def expected_left(layer: Any) -> float:
    """dB of a layer's product that 8-bit inputs leave, as its weights alone say.

    A trained layer that uses all of its inputs weighs a loud one less. If every input adds the same to the product,
    the spread of input j is that of the product over the norm w_j of its column, and codes with one scale for all, set
    at 4 spreads of the loudest, leave 12 (127 / 4)^2 min(w^2) / mean(w^2) of it. Columns that are all but 0 belong to
    inputs that are not used.
    """
    norms = weight_rows(layer).detach().double().transpose(0, 1).flatten(1).square().sum(1)
    used = norms[norms > UNUSED**2 * norms.mean()]
    return decibels(12 * (127 / 4) ** 2 * float(used.min()), float(norms.mean())) if len(used) else 200.0


def guessed(model: nn.Module, schemes: Mapping[str, Scheme]) -> dict[str, Remedy]:
    """A remedy for layers whose weights alone make an outlier among their inputs likely (`expected_left`).

    It is a guess, so they get what costs little where it is wrong: a rotation, which keeps 8 bits, or 16-bit inputs
    where no product of integers is lost.
    """
    found = {}
    for name, scheme in schemes.items():
        layer: Any = model.get_submodule(name)
        left = expected_left(layer)
        if left < SUSPECT:
            turned = candidates(layer, scheme).get("a rotation")
            better, what = (wide(scheme), "16-bit inputs") if turned is None else (turned, "a rotation")
            why = (
                f"outliers likely: by its weights alone 8-bit inputs leave {left:.0f} dB; {what}, nothing was measured"
            )
            found[name] = Remedy(better, why, left)
    return found
