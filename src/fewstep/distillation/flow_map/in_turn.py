"""Terms one after another, and terms together: stages of one training, each with its own sources and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class TrainingStages:
    """(until, term) in order: a term acts while the share of the training that is done lies below `until`.

    Raises:
        FewstepError: no stages, or shares that do not rise to 1.
    """

    stages: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        ends = [until for until, _ in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1 or ends[0] <= 0:
            raise FewstepError("the ends of stages must rise to 1", value=ends, hint="Give the last stage 1.0.")

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss of the present stage; logged: its number, from 0."""
        k = sum(batch.progress >= until for until, _ in self.stages[:-1])
        loss, numbers = self.stages[k][1](networks, batch, samples, generator)
        return loss, {**numbers, "stage": torch.tensor(float(k))}


@dataclass(frozen=True)
class SummedTerms:
    """The sum of two terms, as one stage; numbers of the second are named after it."""

    first: Term
    second: Term
    name: str = "second"

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The sum."""
        (a, numbers), (b, more) = (term(networks, batch, samples, generator) for term in (self.first, self.second))
        return a + b, {**numbers, self.name: b.detach(), **{f"{self.name}/{k}": v for k, v in more.items()}}
