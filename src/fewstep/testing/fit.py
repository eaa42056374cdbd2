"""The plain training of the networks that beds begin with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit_network(network: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float, average: float = 0.0) -> None:
    """Train in place: Adam with a cosine down to zero.

    average: decay of the moving average of the weights that is left in the network; 0: the last weights.
    """
    averaged = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        plan.step()
        if average:
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - average)
    if average:
        network.load_state_dict(averaged.state_dict())
