"""An editor: a text-to-image network that also reads the picture it is to change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError


class Editor(nn.Module):
    """A network whose first layer reads the source picture beside the state, as further channels.

    The new weights are zero, so that it begins as the network that it was made of (arXiv 2211.09800).

    Args:
        network: a diffusers backbone, or another module (state, time, **condition) -> raw output; it is copied.
        first: name of its first layer, a convolution or a linear layer.

    Raises:
        FewstepError: there is no such layer.
    """

    def __init__(self, network: nn.Module, first: str = "conv_in") -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(True)
        parent, _, name = first.rpartition(".")
        try:
            place = self.network.get_submodule(parent)
            layer = getattr(place, name)
        except AttributeError:
            known = [n for n, _ in self.network.named_children()]
            raise FewstepError("the network has no such layer", value=first, hint=f"It has {known}.") from None
        setattr(place, name, widened(layer))

    def forward(self, sample: Tensor, timestep: Tensor, source: Tensor, **condition: Any) -> Any:
        """What the network says of states (B, C, ...) beside their sources (B, C, ...)."""
        return self.network(torch.cat([sample, source.to(sample)], 1), timestep, **condition)


def widened(layer: nn.Module) -> nn.Module:
    """A convolution or linear layer of twice as many inputs, the second half of which count for nothing yet.

    Raises:
        FewstepError: a layer of another kind, or of groups.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear) or getattr(layer, "groups", 1) != 1:
        hint = "Name a Conv2d or a Linear layer."
        raise FewstepError("this layer cannot read a second picture", value=type(layer).__name__, hint=hint)
    grown = copy.deepcopy(layer)
    grown.weight = nn.Parameter(torch.cat([layer.weight.detach(), torch.zeros_like(layer.weight)], 1))
    setattr(grown, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", 2 * layer.weight.shape[1])
    return grown


def without(network: Callable[..., Tensor], names: Collection[str] = ("source",)) -> Callable[..., Tensor]:
    """The network that is not told these conditions: teacher and critic of an editor know the wanted caption alone.

    Args:
        network: (x, time, **condition) -> raw output.
        names: what it is not told.
    """

    def asked(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        return network(x, time, **{name: value for name, value in condition.items() if name not in names})

    return asked
