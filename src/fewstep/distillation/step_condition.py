"""A critic that knows which call of the student its samples come from.

Without that, one critic for all calls follows the mixture of their laws. The mixture can be right while no call is, so
that what each call should make is not settled (the calls of a student of several steps then drift apart).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from fewstep.errors import FewstepError


class StepConditioned(nn.Module):
    """A network with one learned vector per call, added to what its time embeddings put out.

    The vectors are zero at the start, so that it begins as the network inside. Nothing stays on that network between
    calls: LoRA roles share it.

    Args:
        network: of diffusers, or one whose `time_layers` names the layers that carry the time.
        calls: how many it distinguishes.

    Raises:
        FewstepError: the network has no time embedding.
    """

    def __init__(self, network: nn.Module, calls: int) -> None:
        super().__init__()
        self.network = network
        self._places = time_layers(self.inner)
        layers = [self.inner.get_submodule(name) for name in self._places]
        vectors = [nn.Embedding(calls, width_of(layer)) for layer in layers]
        for vector in vectors:
            nn.init.zeros_(vector.weight)
        self.vectors = nn.ModuleList(vectors).to(next(network.parameters()).device)

    @property
    def inner(self) -> nn.Module:
        """The network inside, which is called the same way."""
        found: nn.Module = getattr(self.network, "inner", self.network)
        return found

    def forward(self, *args: Any, call: Tensor, **kwargs: Any) -> Any:
        """As the network inside; `call` (B,) counts from 0, the noisiest."""

        def join(vector: nn.Module, layer: nn.Module, given: Any, output: Tensor) -> Tensor:
            added: Tensor = vector(call.to(output.device))
            return output + added.to(output).reshape(len(added), *[1] * (output.ndim - 2), -1)

        layers = [self.inner.get_submodule(name) for name in self._places]
        pairs = zip(self.vectors, layers, strict=True)
        handles = [layer.register_forward_hook(partial(join, vector)) for vector, layer in pairs]
        try:
            return self.network(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()


def time_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of the layers whose output is an embedding of the time: those it names, or diffusers' time embeddings.

    Raises:
        FewstepError: there are none.
    """
    named = getattr(network, "time_layers", ())
    found = tuple(named) or tuple(n for n, m in network.named_modules() if type(m).__name__ == "TimestepEmbedding")
    if not found:
        hint = "Set step_condition=False, or name them: network.time_layers = ('time_embedding',)."
        raise FewstepError(f"{type(network).__name__} has no time embedding that a call could join", hint=hint)
    return found


def width_of(layer: Any) -> int:
    """Numbers that a time embedding puts out per sample."""
    last = layer if hasattr(layer, "out_features") else layer.linear_2
    return int(last.out_features)
