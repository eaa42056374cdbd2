"""Reward updates and distillation by turns: in each step one of them has its loss, the other rests."""

from __future__ import annotations

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Rollout, Samples, Term
from fewstep.distillation.part import part


@part
def own_turns(term: Term, count: int, last: bool) -> Term:
    """A term that acts in the last step of every `count`, or in all others."""

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        if (batch.step % count == count - 1) == last:
            return term(networks, batch, samples, generator)
        return torch.zeros(()), {}

    return loss


@part
def roll_out_in_turns(others: Rollout | None, last: Rollout | None, count: int) -> Rollout | None:
    """The roll-out of whoever has the step; where that needs none, the other's without gradient, for the critic."""
    if last is None:
        return others

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        if batch.step % count == count - 1:
            return last(networks, batch, generator)
        if others is not None:
            return others(networks, batch, generator)
        with torch.no_grad():
            return last(networks, batch, generator)

    return roll
