"""Layers whose inputs 8 bits cannot carry: a few values, far larger than the rest, take the whole range of the codes.

One scale per token or image is set by the largest magnitude. Where that is hundreds of times the typical one, as in the
last blocks of some one-step networks, everything else rounds to zero, whatever the bits of the weights. What these
layers get instead is chosen in `remedies`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.quant.calibration import Calibration
from fewstep.quant.calls import Call, replay
from fewstep.quant.fidelity import decibels, sqnr
from fewstep.quant.integer import quantize_groups, quantize_input
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.methods import smoothing
from fewstep.quant.modules import Product, weight_rows
from fewstep.quant.preparation import prepare_inputs, restore_inputs
from fewstep.quant.remedies import Remedy, chosen, guessed, largest_inputs, wide
from fewstep.quant.rules import Decisions
from fewstep.quant.scheme import Scheme
from fewstep.quant.statistics import LayerStatistics

LEAST = 20.0
"""Signal over noise, in dB, that 8-bit inputs must leave of the network's output (an error of 10 %)."""
Statistics = Mapping[str, LayerStatistics]


def remedied(
    model: nn.Module, given: Decisions, calls: Sequence[Call], calibration: Calibration | None = None,
    least: float = LEAST,
) -> tuple[Decisions, Calibration | None]:  # fmt: skip
    """The decisions, with a remedy for the fewest layers that 8-bit inputs of the network need.

    Nothing changes where rounding the inputs of all layers leaves enough of the network's output of every call. Else
    layers are exempted, those first that lose most of their own product, until enough is left; how many is found by
    bisection, a run of the calls each. Each of these gets the cheapest remedy that carries its inputs as well as those
    of the layers that need none (`remedies.chosen`); where all of them together leave too little of the output, the
    worst of them keep 16-bit inputs.

    Args:
        model: in float; it is only run.
        given: what every layer was to get.
        calls: of the model, such as those of the steps of a real picture.
        calibration: what layers are smoothed by, where it was collected already.
        least: dB that rounded inputs, all weights in float, must leave of the output.

    Returns:
        Them, and the calibration, with what smoothed layers see where there was none.
    """
    schemes = dynamic_inputs(given)
    flagged, target = wide_layers(model, schemes, calls, least, calibration)
    if not flagged:
        return given, calibration
    known = largest_inputs(model, flagged, calls) if calibration is None else calibration
    found = chosen(model, {name: schemes[name] for name in flagged}, calls, target, known.layers)
    fine = {name: scheme for name, scheme in schemes.items() if name not in flagged}
    found = _narrowed(model, fine, found, calls, least, known.layers)
    modules = dict(given.modules)
    for name, remedy in found.items():
        left, ratio = flagged[name]
        reason = f"outliers: 8-bit inputs leave {left:.0f} dB, the largest is {ratio:.0f} times the mean"
        modules[name] = remedy.scheme, f"{reason}; {remedy.reason}"
    smoothed = any(remedy.scheme.smooth for remedy in found.values())
    return dataclasses.replace(given, modules=modules), known if smoothed else calibration


def suspected(model: nn.Module, given: Decisions) -> Decisions:
    """The decisions, with a remedy for layers whose weights alone make outliers likely (`remedies.guessed`)."""
    found = guessed(model, dynamic_inputs(given))
    modules = {**given.modules, **{name: (remedy.scheme, remedy.reason) for name, remedy in found.items()}}
    return dataclasses.replace(given, modules=modules)


def dynamic_inputs(given: Decisions) -> dict[str, Scheme]:
    """The layers whose inputs get integers of 8 bits on scales taken at run time."""
    return {
        name: scheme
        for name, (scheme, _) in given.modules.items()
        if scheme is not None and scheme.activation_bits == 8 and scheme.activation_format == "dynamic"
    }


@torch.no_grad()
def wide_layers(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call], least: float = LEAST,
    calibration: Calibration | None = None,
) -> tuple[dict[str, tuple[float, float]], float]:  # fmt: skip
    """The fewest layers, worst first, whose inputs must not be rounded for `least` dB of the output of each call; see
    `input_errors` for their values. Then the least dB of the others' products."""
    if not schemes:
        return {}, least
    seen = {} if calibration is None else calibration.layers
    enough = _enough(model, calls, least, seen)
    if enough(schemes):
        return {}, least
    errors = input_errors(model, schemes, calls, seen)
    order = sorted(errors, key=lambda name: errors[name][0])
    many = _fewest(order, lambda rest: enough({name: schemes[name] for name in rest}))
    return {name: errors[name] for name in order[:many]}, errors[order[many]][0] if order[many:] else least


def _narrowed(
    model: nn.Module, fine: Mapping[str, Scheme], found: Mapping[str, Remedy], calls: Sequence[Call], least: float,
    seen: Statistics,
) -> dict[str, Remedy]:  # fmt: skip
    """The remedies, the worst of them replaced by 16-bit inputs where together they leave too little of the output."""
    tried = {name: remedy.scheme for name, remedy in found.items() if remedy.scheme.activation_bits == 8}
    enough = _enough(model, calls, least, seen)
    if not tried or enough({**fine, **tried}):
        return dict(found)
    order = sorted(tried, key=lambda name: found[name].left)
    many = _fewest(order, lambda rest: enough({**fine, **{name: tried[name] for name in rest}}))
    why = "enough for the layer, not for the output of all together, so 16-bit inputs"
    changed = {n: Remedy(wide(tried[n]), f"{found[n].reason}: {why}", found[n].left) for n in order[:many]}
    return {**found, **changed}


def _fewest(order: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> int:
    """How many from the front must go so that the rest is enough: by bisection, to a 64th of them."""
    few, many = 0, len(order)
    while many - few > max(1, len(order) // 64):
        middle = (few + many) // 2
        few, many = (few, middle) if enough(order[middle:]) else (middle, many)
    return many


def _enough(model: nn.Module, calls: Sequence[Call], least: float, seen: Statistics) -> Any:
    """Whether the network keeps `least` dB of the output of each call with the inputs of the given layers rounded."""
    truth = [replay(model, [call]) for call in calls]
    modules = dict(model.named_modules())

    def enough(schemes: Mapping[str, Scheme]) -> bool:
        with ExitStack() as stack:
            for name, scheme in schemes.items():
                hook = partial(_round_inputs, scheme=scheme, smooth=divisors(modules[name], scheme, seen.get(name)))
                stack.callback(modules[name].register_forward_pre_hook(hook).remove)
            pairs = zip(truth, calls, strict=True)
            return all(sqnr(whole, replay(model, [call])) >= least for whole, call in pairs)

    return enough


def _round_inputs(layer: Any, args: tuple[Any, ...], *, scheme: Scheme, smooth: Tensor | None) -> tuple[Any, ...]:
    return _rounded(layer, args[0], scheme, smooth).to(args[0].dtype), *args[1:]


@torch.no_grad()
def input_errors(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call], seen: Statistics | None = None
) -> dict[str, tuple[float, float]]:
    """Of every layer that the calls reach: dB of its product that rounded inputs leave, and its largest input as a
    multiple of the root mean square of its inputs."""
    sums: dict[str, list[float]] = {}

    def measure(name: str, layer: Any) -> Any:
        smooth = divisors(layer, schemes[name], (seen or {}).get(name))

        def hook(layer: Any, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float()
            clean, rounded = _product(layer, x), _product(layer, _rounded(layer, x, schemes[name], smooth))
            found = sums.setdefault(name, [0.0, 0.0, 0.0])
            found[0] += float(clean.double().square().sum())
            found[1] += float((clean - rounded).double().square().sum())
            found[2] = max(found[2], float(x.abs().max() / x.square().mean().sqrt().clamp(min=1e-30)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name in schemes:
                stack.callback(module.register_forward_pre_hook(measure(name, module)).remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
    return {name: (decibels(signal, noise), ratio) for name, (signal, noise, ratio) in sums.items()}


def divisors(layer: Any, scheme: Scheme, statistics: LayerStatistics | None) -> Tensor | None:
    """What smoothing divides the inputs of a layer by, (in,); None where its scheme has none."""
    if not scheme.smooth or statistics is None:
        return None
    weight = weight_rows(layer).detach().float()
    return smoothing.divisors(weight.view(*weight.shape[:2], -1), statistics.largest)


def _product(layer: Product, x: Tensor) -> Tensor:
    """The layer's product without its bias, in float32."""
    return make_layer(layer, Scheme(8))._product(x, weight_rows(layer).float(), None)


def _rounded(layer: Product, x: Tensor, scheme: Scheme, smooth: Tensor | None = None) -> Tensor:
    """The inputs that the low-bit layer would multiply, in the place of the float layer's own."""
    low = make_layer(layer, scheme)
    x = prepare_inputs(low, x, smooth)
    if scheme.activation_group is not None:
        return restore_inputs(low, quantize_groups(x, low._dims, scheme.activation_group, scheme.top), smooth)
    codes, scale = quantize_input(x, low._dims, scheme)
    return restore_inputs(low, codes * scale, smooth)


@torch.no_grad()
def layer_sqnr(full: nn.Module, low: nn.Module, calls: Sequence[Call]) -> dict[str, float]:
    """Of every low-bit layer, how well it does what its float twin does on the twin's own inputs, in dB; worst first.

    Args:
        full: the model in float.
        low: its twin in low bits.
        calls: of the model.
    """
    twins = {name: layer for name, layer in low.named_modules() if isinstance(layer, QuantLayer)}
    sums: dict[str, list[float]] = {}

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            seen = sums.setdefault(name, [0.0, 0.0])
            seen[0] += float(output.double().square().sum())
            seen[1] += float((twins[name](*args, **kwargs) - output).double().square().sum())

        return hook

    with ExitStack() as stack:
        for name, module in full.named_modules():
            if name in twins:
                stack.callback(module.register_forward_hook(compare(name), with_kwargs=True).remove)
        for args, kwargs in calls:
            full(*args, **kwargs)
    left = {name: decibels(signal, noise) for name, (signal, noise) in sums.items()}
    return dict(sorted(left.items(), key=lambda entry: entry[1]))
