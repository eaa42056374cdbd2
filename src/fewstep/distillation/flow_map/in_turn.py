"""Terms one after another, and terms together: stages of one training, each with its own sources and targets."""

from __future__ import annotations

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.errors import FewstepError


@part
def training_stages(stages: tuple[tuple[float, Term], ...]) -> Term:
    """One term after another, each as long as the share of the training that is done lies below its `until`.

    The number of the present stage is logged, from 0.

    Args:
        stages: (until, term) in order.

    Raises:
        FewstepError: no stages, or shares that do not rise to 1.
    """
    ends = [until for until, _ in stages]
    if not ends or ends != sorted(set(ends)) or ends[-1] != 1 or ends[0] <= 0:
        raise FewstepError("the ends of stages must rise to 1", value=ends, hint="Give the last stage 1.0.")

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        k = sum(batch.progress >= until for until in ends[:-1])
        value, numbers = stages[k][1](networks, batch, samples, generator)
        return value, {**numbers, "stage": torch.tensor(float(k))}

    return loss


@part
def summed_terms(first: Term, second: Term, name: str = "second") -> Term:
    """The sum of two terms, as one stage; numbers of the second are named after it."""

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        (a, numbers), (b, more) = (term(networks, batch, samples, generator) for term in (first, second))
        return a + b, {**numbers, name: b.detach(), **{f"{name}/{k}": v for k, v in more.items()}}

    return loss
