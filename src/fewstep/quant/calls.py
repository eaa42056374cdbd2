"""Calls of a network: recording them while it draws, and running them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""(args, kwargs) of one call."""
Example = Call | list[Call]
"""A call to look at, or a list of them, such as one of each step."""


def spread_calls(calls: Sequence[Call], most: int = 4) -> list[Call]:
    """At most so many of the calls, evenly spread, the first and the last among them."""
    if len(calls) <= most:
        return list(calls)
    return [calls[round(k * (len(calls) - 1) / (most - 1))] for k in range(most)]


@contextmanager
def recording(model: nn.Module, limit: int | None = None) -> Iterator[list[Call]]:
    """Notes the arguments of the calls that the model gets inside the context, at most `limit` of them."""
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if limit is None or len(calls) < limit:
            calls.append((_kept(args), _kept(kwargs)))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def recording_parts(parts: Mapping[str, Any], limit: int | None = None) -> Iterator[dict[str, list[Call]]]:
    """Notes the calls of every network among named parts of a pipeline, see `recording`."""
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    with ExitStack() as stack:
        yield {name: stack.enter_context(recording(network, limit)) for name, network in networks.items()}


def replay(model: nn.Module, calls: Sequence[Call]) -> Tensor:
    """Outputs of the model for recorded calls, flattened one after the other.

    Raises:
        FewstepError: there are no calls.
    """
    if not calls:
        raise FewstepError("no call of the network was recorded", hint="Give at least one calibration prompt or label.")
    with torch.no_grad():
        return torch.cat([_flat(model(*args, **kwargs)) for args, kwargs in calls])


def multiply_adds(model: nn.Module, call: Call, names: Sequence[str]) -> dict[str, int]:
    """Multiply-adds of each named layer in one recorded call; 0 for a layer that does not run."""
    found = dict.fromkeys(names, 0)
    hooks = []
    for name in names:
        layer: Any = model.get_submodule(name)

        def count(
            _: nn.Module, __: Any, output: Tensor, name: str = name, columns: int = layer.weight[0].numel()
        ) -> None:
            found[name] += output.numel() * columns

        hooks.append(layer.register_forward_hook(count))
    try:
        replay(model, [call])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _kept(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_kept(inner) for inner in value)
    return value


def _flat(output: Any) -> Tensor:
    first = output if isinstance(output, Tensor) else output[0]
    parts = [first] if isinstance(first, Tensor) else list(first)
    return torch.cat([part.detach().float().flatten() for part in parts])
