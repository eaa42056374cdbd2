"""A second call of the student in one step: the chain finished, noised again, in a term of its own."""

from __future__ import annotations

import torch

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError
from fewstep.transition import noise_like


@part
def later_call(chain: Chain, times: tuple[float, ...], term: Term, learn: bool = True) -> Term:
    """A term on one later call: the chain is finished, noised to one of `times`, and the student called again.

    Only that call has a gradient (Flash-DMD's texture branch, arXiv 2511.20549).

    Args:
        chain: of the student.
        times: of calls of the chain, one of which is drawn.
        term: what is asked of the samples of that call.
        learn: False for terms of other networks, which need no gradient of the student.

    Raises:
        FewstepError: a time that is none of the student's; when called: there is no roll-out.
    """
    unknown = [t for t in times if t not in chain.times]
    if unknown:
        raise FewstepError("the student is never called at this time", value=unknown[0], hint=str(chain.times))

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        samples = needed(samples)
        places = torch.tensor([chain.times.index(t) for t in times])
        index = places[torch.randint(len(places), (1,), generator=generator)].expand(batch.size)
        clean = chain.finish(networks.student, batch, samples, generator)
        noise = noise_like(tuple(clean.shape), generator, clean)
        state = networks.student.process.add_noise(clean, noise, torch.tensor(chain.times, dtype=torch.float64)[index])
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            later = chain.call(networks.student, batch, state, index)
        return term(networks, batch, later, generator)

    return loss
