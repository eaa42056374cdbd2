"""Which layers a state meets first and last, and which make conditions for others: seen in one call of a network.

For networks whose names tell nothing. Every tensor of the call is followed through all operations: which layers reach
it with no other layer between, and whether it depends on the state at all.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fewstep.errors import FewstepError
from fewstep.quant.calls import Call
from fewstep.quant.modules import PRODUCTS

FIRST, LAST, CONDITIONING = "first", "last", "conditioning"
_STATES = ("sample", "hidden_states", "x", "input_ids")


Origin = frozenset[str | None]
"""Where a tensor comes from: the names of the nearest layers behind it, and None if the state is among its causes."""


@dataclass
class _Trace(TorchDispatchMode):
    """Keeps the origin of every tensor while it is on, and notes which layers read which."""

    origins: Any = field(default_factory=WeakTensorKeyDictionary)
    readers: dict[str, set[str]] = field(default_factory=dict)
    on_state: dict[str, bool] = field(default_factory=dict)
    sources: dict[str, set[str]] = field(default_factory=dict)
    written: dict[int, tuple[Any, Origin]] = field(default_factory=dict)
    """Storages that were written into, kept alive so that their numbers stay theirs: views of them share the origin."""

    def __post_init__(self) -> None:
        super().__init__()

    def of(self, *values: Any) -> Origin:
        """The origin of what depends on all of these."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        found = [self.origins[tensor] for tensor in tensors if tensor in self.origins]
        if self.written:
            found += [self.written[key][1] for t in tensors if (key := t.untyped_storage()._cdata) in self.written]
        return frozenset().union(*found)

    def set(self, values: Any, origin: Origin) -> None:
        """Say where these tensors come from."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                self.origins[value] = origin

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        origin = self.of(args, kwargs)
        self.set(result, origin)
        if func._schema.is_mutable and isinstance(args[0], Tensor):
            storage = args[0].untyped_storage()
            self.written[storage._cdata] = storage, origin
        return result

    def enter(self, name: str, given: Any) -> None:
        """A layer reads its input."""
        origin = self.of(given)
        self.on_state[name] = self.on_state.get(name, False) or None in origin
        layers = {source for source in origin if source is not None}
        self.sources.setdefault(name, set()).update(layers)
        for source in layers:
            self.readers.setdefault(source, set()).add(name)

    def leave(self, name: str, result: Any) -> None:
        """A layer gives its output."""
        self.set(result, frozenset({name, None} if self.on_state[name] else {name}))


def roles_of(model: nn.Module, call: Call) -> dict[str, tuple[str, ...]]:
    """Names of the Linear layers and convolutions by their role in one call; a role that no layer has is empty.

    first: they read the state before any other layer has.
    last: nothing but plain operations lies between them and the output.
    conditioning: they do not depend on the state, and other such layers read what they make (time embeddings).

    Args:
        model: any network; `call` are its arguments (args, kwargs), the state first or under one of the usual names.

    Raises:
        FewstepError: the arguments hold no state, or no layer was called.
    """
    args, kwargs = call
    state = args[0] if args else next((kwargs[name] for name in _STATES if name in kwargs), None)
    tensors = [value for value in tree_leaves(state) if isinstance(value, Tensor)]
    if not tensors:
        hint = "Give (args, kwargs) of one call of the network, the noisy state first."
        raise FewstepError("the example call holds no state", value=[*map(type, args), *kwargs], hint=hint)
    trace = _Trace()
    with ExitStack() as stack, torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, PRODUCTS):
                before = layer.register_forward_pre_hook(
                    lambda _, a, k, name=name: trace.enter(name, (a, k)), with_kwargs=True
                )
                after = layer.register_forward_hook(lambda _, __, result, name=name: trace.leave(name, result))
                stack.callback(before.remove)
                stack.callback(after.remove)
        trace.set(tensors, frozenset({None}))
        stack.enter_context(trace)
        result = model(*args, **kwargs)
        end = trace.of(result, {} if isinstance(result, Tensor) else getattr(result, "__dict__", {}))
    if not trace.on_state:
        raise FewstepError(
            "no Linear or convolution was called in the example", hint="Give a call of this very network."
        )
    on, aside = (frozenset(n for n, state in trace.on_state.items() if state is want) for want in (True, False))
    return {
        FIRST: tuple(name for name in trace.on_state if name in on and not trace.sources[name] & on),
        LAST: tuple(name for name in trace.on_state if name in end & on),
        CONDITIONING: tuple(n for n in trace.on_state if n in aside and trace.readers.get(n, set()) & aside),
    }
