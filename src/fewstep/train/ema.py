"""Exponential moving average of weights, warmed up so that the first steps are not dominated by the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fewstep.distillation.roles import warmed_up
from fewstep.train.shards import like


class EMA:
    """Averages the floating-point parameters of named modules; buffers and integers are copied.

    The decay begins low (`warmed_up`).
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: tensor.detach().clone() for name, tensor in named_tensors(modules)}

    @torch.no_grad()
    def update(self, modules: Mapping[str, nn.Module]) -> None:
        """Take one step towards the present weights."""
        self.updates += 1
        decay = warmed_up(self.decay, self.updates)
        floats: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for name, tensor in named_tensors(modules):
            shadow = self.shadow[name]
            if shadow.is_floating_point():
                floats[0].append(shadow)
                floats[1].append(tensor.to(shadow.dtype))
            else:
                shadow.copy_(tensor)
        if floats[0]:
            torch._foreach_lerp_(*floats, 1 - decay)

    @torch.no_grad()
    def copy_to(self, modules: Mapping[str, nn.Module]) -> None:
        """Put the averaged weights into the modules."""
        for name, tensor in named_tensors(modules):
            tensor.copy_(self.shadow[name])

    def load(self, shadow: Mapping[str, torch.Tensor], updates: int) -> None:
        """Continue from stored averages."""
        for name, tensor in self.shadow.items():
            tensor.copy_(like(shadow[name], tensor))
        self.updates = updates


def named_tensors(modules: Mapping[str, nn.Module]) -> Iterable[tuple[str, torch.Tensor]]:
    """Every tensor of the modules by `MODULE.NAME`."""
    for module_name, module in modules.items():
        for name, tensor in module.state_dict().items():
            yield f"{module_name}.{name}", tensor
