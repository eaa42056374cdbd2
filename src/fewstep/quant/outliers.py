"""Layers whose inputs 8 bits cannot carry: a few values, far larger than the rest, take the whole range of the codes.

One scale per token or image is set by the largest magnitude. Where that is hundreds of times the typical one, as in the
last blocks of some one-step networks, everything else rounds to zero, whatever the bits of the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.quant.calls import Call, replay
from fewstep.quant.fidelity import decibels, sqnr
from fewstep.quant.integer import quantize_groups, quantize_input
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.modules import Product, weight_rows
from fewstep.quant.rules import Decisions
from fewstep.quant.scheme import Scheme

LEAST = 20.0
"""Signal over noise, in dB, that 8-bit inputs must leave of the network's output (an error of 10 %)."""


def with_wide_inputs(model: nn.Module, given: Decisions, calls: Sequence[Call], least: float = LEAST) -> Decisions:
    """The decisions, with 16-bit inputs for the fewest layers that 8-bit inputs of the network need.

    Nothing changes where rounding the inputs of all layers leaves enough of the network's output of every call. Else
    layers get 16-bit inputs, those first that lose most of their own product, until enough is left; how many is found
    by bisection, a run of the calls each.

    Args:
        model: in float; it is only run.
        given: what every layer was to get.
        calls: of the model, such as those of the steps of a real picture.
        least: dB that rounded inputs, all weights in float, must leave of the output.
    """
    schemes = {
        name: scheme
        for name, (scheme, _) in given.modules.items()
        if scheme is not None and scheme.activation_bits == 8 and scheme.activation_format == "dynamic"
    }
    wide = wide_layers(model, schemes, calls, least)
    modules = dict(given.modules)
    for name, (left, ratio) in wide.items():
        scheme = dataclasses.replace(schemes[name], activation_bits=16, activation_group=None)
        reason = f"outliers: 8-bit inputs leave {left:.0f} dB, the largest is {ratio:.0f} times the mean"
        modules[name] = scheme, reason
    return dataclasses.replace(given, modules=modules)


@torch.no_grad()
def wide_layers(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call], least: float = LEAST
) -> dict[str, tuple[float, float]]:
    """The fewest layers, worst first, whose inputs must stay as they are for `least` dB of the output of each call; see
    `input_errors` for their values."""
    if not schemes:
        return {}
    truth = [replay(model, [call]) for call in calls]
    modules = dict(model.named_modules())

    def left(rounded: Iterable[str]) -> float:
        with ExitStack() as stack:
            for name in rounded:
                stack.callback(modules[name].register_forward_pre_hook(_rounding(schemes[name])).remove)
            return min(sqnr(whole, replay(model, [call])) for whole, call in zip(truth, calls, strict=True))

    if left(schemes) >= least:
        return {}
    errors = input_errors(model, schemes, calls)
    order = sorted(errors, key=lambda name: errors[name][0])
    few, many = 0, len(order)
    while many - few > max(1, len(order) // 64):
        middle = (few + many) // 2
        few, many = (few, middle) if left(order[middle:]) >= least else (middle, many)
    return {name: errors[name] for name in order[:many]}


def _rounding(scheme: Scheme) -> Any:
    """A hook that rounds the input of a layer."""

    def hook(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return _rounded(layer, args[0], scheme).to(args[0].dtype), *args[1:]

    return hook


@torch.no_grad()
def input_errors(
    model: nn.Module, schemes: Mapping[str, Scheme], calls: Sequence[Call]
) -> dict[str, tuple[float, float]]:
    """Of every layer that the calls reach: dB of its product that rounded inputs leave, and its largest input as a
    multiple of the root mean square of its inputs."""
    sums: dict[str, list[float]] = {}

    def measure(name: str, scheme: Scheme) -> Any:
        def hook(layer: Any, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float()
            clean, rounded = _product(layer, x), _product(layer, _rounded(layer, x, scheme))
            seen = sums.setdefault(name, [0.0, 0.0, 0.0])
            seen[0] += float(clean.double().square().sum())
            seen[1] += float((clean - rounded).double().square().sum())
            seen[2] = max(seen[2], float(x.abs().max() / x.square().mean().sqrt().clamp(min=1e-30)))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name in schemes:
                stack.callback(module.register_forward_pre_hook(measure(name, schemes[name])).remove)
        for args, kwargs in calls:
            model(*args, **kwargs)
    return {name: (decibels(signal, noise), ratio) for name, (signal, noise, ratio) in sums.items()}


def _product(layer: Product, x: Tensor) -> Tensor:
    """The layer's product without its bias, in float32."""
    return make_layer(layer, Scheme(8))._product(x, weight_rows(layer).float(), None)


def _rounded(layer: Product, x: Tensor, scheme: Scheme) -> Tensor:
    dims = make_layer(layer, scheme)._dims
    if scheme.activation_group is not None:
        return quantize_groups(x, dims, scheme.activation_group, scheme.top)
    codes, scale = quantize_input(x, dims, scheme)
    return codes * scale


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
