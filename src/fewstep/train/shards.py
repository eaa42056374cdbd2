"""Weights in parts over the processes (FSDP2): moments, averages and slow copies too, each process holds its share.

During a turn the networks are whole in every process, and so are the gradients of those whose turn it is; between
turns nothing is. That is more memory than gathering block by block, and what methods need whose calls differ between
processes: how far a roll-out goes is drawn per sample, and block-wise gathering waits for calls that never come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.errors import FewstepError
from fewstep.runs import processes


def wanted(shard: bool) -> bool:
    """Whether to shard: asked for in the settings or by accelerate's configuration, and there is someone to share with.

    Raises:
        FewstepError: accelerate's configuration asks for FSDP1.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and os.environ.get("FSDP_VERSION", "1") != "2":
        raise FewstepError(
            "only version 2 of FSDP is supported",
            value=os.environ.get("FSDP_VERSION", "1"),
            hint="Set fsdp_version: 2 in accelerate's configuration.",
        )
    return (shard or asked) and processes.count() > 1


class Shards:
    """Networks that are shared out.

    Args:
        modules: by name; their parameters become DTensors, so optimizers and averages must be created afterwards.
        renewed: called once when the networks are whole for the first time: these parameters take part in the losses.

    Raises:
        FewstepError: networks that share weights or have frozen ones (LoRA on a shared base).
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], device: torch.device, renewed: Callable[[], None] | None = None
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        _check(modules)
        mesh = init_device_mesh(device.type, (processes.count(),))
        self._modules: list[Any] = []
        for module in modules.values():
            if any(True for _ in module.parameters()):
                sharded: Any = fully_shard(module, mesh=mesh, reshard_after_forward=False)
                sharded.set_requires_gradient_sync(False)
                sharded.set_reshard_after_backward(False)
                self._modules.append(sharded)
        self._pairs: dict[nn.Parameter, nn.Parameter] = {}
        self._renewed = renewed

    def gather(self) -> None:
        """Make the networks whole."""
        first = not self._pairs
        parts = [list(m.parameters()) for m in self._modules] if first else []
        for module in self._modules:
            module.unshard()
        if first:  # the whole parameters stay the same objects
            for module, own in zip(self._modules, parts, strict=True):
                self._pairs |= dict(zip(own, module.parameters(), strict=True))
            if self._renewed is not None:
                self._renewed()

    def scatter(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        """Keep the own part alone; these parameters (as `parameters()` of a part) get their gradient's mean."""
        own = list(parameters)
        whole = [self._pairs[p] for p in own]
        processes.mean_gradients(whole)
        gradients = [p.grad for p in whole]
        for parameter in self._pairs.values():
            parameter.grad = None
        for module in self._modules:
            module.reshard()
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = None if gradient is None else like(gradient, parameter)


def like(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """A whole tensor laid out as `part` is; every process has the same one."""
    if not isinstance(part, DTensor):
        return whole
    sharded: torch.Tensor = distribute_tensor(
        whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None
    )
    return sharded


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may lie in parts; all processes must ask."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: torch.Tensor = tensor.full_tensor()
    return full


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """State of a module that may lie in parts, as that of one that does not; all processes must ask."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a whole state into a module that may lie in parts.

    Raises:
        RuntimeError: other names or shapes.
    """
    own = module.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in own.values()):
        module.load_state_dict(dict(state))
        return
    wrong = sorted(own.keys() ^ state.keys()) or [n for n, t in own.items() if t.shape != state[n].shape]
    if wrong:
        raise RuntimeError(f"other tensors: {', '.join(wrong[:3])}")
    for name, tensor in own.items():
        tensor.copy_(like(state[name].to(tensor.dtype), tensor))


def _check(modules: Mapping[str, nn.Module]) -> None:
    seen: set[int] = set()
    for name, module in modules.items():
        own = {id(p) for p in module.parameters()}
        if own & seen or hasattr(module, "shared"):
            raise FewstepError(
                f"the {name} shares weights with another network and cannot be sharded",
                hint="LoRA on one base is small: set train.lora=0, or train.shard=false.",
            )
        seen |= own
