"""Shallower denoisers: which blocks do least, and the network without them, to be trained a little more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.tasks.proteins.network import StructureNetwork


def without_blocks(network: StructureNetwork, dropped: Sequence[int]) -> StructureNetwork:
    """A copy whose denoiser lacks these blocks; the trunk stays.

    Raises:
        FewstepError: no such block, or none would be left.
    """
    size = network.size
    kept = [k for k in range(size.blocks) if k not in dropped]
    if not kept or any(not 0 <= k < size.blocks for k in dropped):
        what = f"the denoiser has blocks 0 to {size.blocks - 1}, of which one must stay"
        raise FewstepError(what, value=list(dropped))
    made = copy.deepcopy(network)
    made.size = replace(size, blocks=len(kept))
    made.blocks = nn.ModuleList(made.blocks[k] for k in kept)
    rows = made.bias.weight.detach().unflatten(0, (size.blocks, size.heads))[kept].flatten(0, 1)
    made.bias = nn.Linear(size.pair, len(rows), bias=False)
    made.bias.weight.data.copy_(rows)
    return made


@torch.no_grad()
def block_changes(network: StructureNetwork, run: Callable[[], object]) -> list[float]:
    """How much each block changes its tokens while `run` calls the network: one less the cosine of input and output.

    A block that changes little can go (the criterion of layer pruning in language models, arXiv 2403.03853).
    """
    found: list[list[Tensor]] = [[] for _ in network.blocks]

    def noting(k: int) -> Callable[[nn.Module, tuple[Tensor, ...], tuple[Tensor, Tensor]], None]:
        def note(module: nn.Module, given: tuple[Tensor, ...], made: tuple[Tensor, Tensor]) -> None:
            found[k].append(1 - torch.cosine_similarity(given[0], made[0], dim=-1).mean())

        return note

    hooks = [block.register_forward_hook(noting(k)) for k, block in enumerate(network.blocks)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [float(torch.stack(values).mean()) for values in found]


def least_harmful(network: StructureNetwork, loss: Callable[[StructureNetwork], float], count: int) -> list[int]:
    """Blocks to drop one after another, each time the one whose loss without it is least."""
    dropped: list[int] = []
    for _ in range(count):
        left = [k for k in range(network.size.blocks) if k not in dropped]
        dropped.append(min(left, key=lambda k: loss(without_blocks(network, [*dropped, k]))))
    return sorted(dropped)
