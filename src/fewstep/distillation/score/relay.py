"""A second call of the student in one step: the chain finished, noised again, in a term of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError
from fewstep.transition import noise_like


@dataclass(frozen=True)
class LaterCall:
    """A term on one later call: the chain is finished, noised to one of `times`, and the student called again.

    Only that call has a gradient (Flash-DMD's texture branch, arXiv 2511.20549). `learn` is False for terms of other
    networks, which need no gradient of the student.
    """

    chain: Chain
    times: tuple[float, ...]
    term: Term
    learn: bool = True

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss of the inner term.

        Raises:
            FewstepError: there is no roll-out, or a time that is none of the student's.
        """
        samples = needed(samples)
        unknown = [t for t in self.times if t not in self.chain.times]
        if unknown:
            raise FewstepError("the student is never called at this time", value=unknown[0], hint=str(self.chain.times))
        places = torch.tensor([self.chain.times.index(t) for t in self.times])
        index = places[torch.randint(len(places), (1,), generator=generator)].expand(batch.size)
        times = torch.tensor(self.chain.times, dtype=torch.float64)
        clean = self.chain.finish(networks.student, batch, samples, generator)
        noise = noise_like(tuple(clean.shape), generator, clean)
        state = networks.student.process.add_noise(clean, noise, times[index])
        with torch.set_grad_enabled(self.learn and torch.is_grad_enabled()):
            later = self.chain.call(networks.student, batch, state, index)
        return self.term(networks, batch, later, generator)
