"""A second call of the student in one step: the chain finished, noised again, judged by a term of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term, noise_like
from fewstep.distillation.rollout import last_call, needed, next_state, noise_between, rows_of, rows_of_samples, walk
from fewstep.distillation.steps import Steps
from fewstep.errors import FewstepError


@torch.no_grad()
def finish(networks: Networks, batch: Batch, samples: Samples, steps: Steps, generator: torch.Generator) -> Tensor:
    """Clean samples (B, ...) from the rest of the student's chain after what it made, without a gradient."""
    last = len(steps) - 1
    clean, going = samples.clean.detach(), samples.index < last
    if not bool(going.any()):
        return clean
    rows = going.nonzero().squeeze(1)
    part, left, begin = rows_of(batch, rows), rows_of_samples(samples, rows), samples.index[rows]
    state = torch.empty_like(left.state)
    for k in range(last):
        here = (begin == k).nonzero().squeeze(1)
        if len(here):
            noise = noise_between(steps, left.state[here], generator)
            state[here] = next_state(networks.student, steps, k, left.state[here], left.clean[here], noise)
    end = torch.full_like(begin, last)
    state = walk(networks.student, part, steps, state, begin + 1, end, generator, None)
    return clean.index_put(
        (rows.to(clean.device),), last_call(networks.student, part, steps, state, end).clean.to(clean.dtype)
    )


@dataclass(frozen=True)
class Relay:
    """A term judged on one later call: the chain is finished, noised to one of `times`, and the student called again.

    Only that call has a gradient (Flash-DMD's texture branch, arXiv 2511.20549). `learn` is False for terms of other
    networks, which need no gradient of the student.
    """

    steps: Steps
    times: tuple[float, ...]
    term: Term
    learn: bool = True

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss of the inner term.

        Raises:
            FewstepError: there is no roll-out, or a time that is none of the student's.
        """
        samples = needed(samples)
        unknown = [t for t in self.times if t not in self.steps.times]
        if unknown:
            raise FewstepError("the student is never called at this time", value=unknown[0], hint=str(self.steps.times))
        places = torch.tensor([self.steps.times.index(t) for t in self.times])
        index = places[torch.randint(len(places), (1,), generator=generator)].expand(batch.size)
        times = torch.tensor(self.steps.times, dtype=torch.float64)
        clean = finish(networks, batch, samples, self.steps, generator)
        noise = noise_like(tuple(clean.shape), generator, clean)
        state = networks.student.process.add_noise(clean, noise, times[index])
        with torch.set_grad_enabled(self.learn and torch.is_grad_enabled()):
            later = last_call(networks.student, batch, self.steps, state, index)
        return self.term(networks, batch, later, generator)
