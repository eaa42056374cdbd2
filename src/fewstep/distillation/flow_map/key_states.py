"""An adversary on the states between a student's calls: real ones are stored states of the teacher at the same times.

Nothing is noised again, since both sides live at the time of the key state (AccVideo, arXiv 2503.19462, sec. 4.3). The
student's states are those of its own chain: the method's roll-out is a `backward_simulation` without fresh noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.distillation.adversary import LOSSES
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.discriminator import FeatureSource
from fewstep.distillation.flow_map.frame import JumpCoefficients
from fewstep.distillation.flow_map.intervals import key_positions
from fewstep.distillation.flow_map.sources import stored
from fewstep.distillation.part import part
from fewstep.errors import FewstepError


@part
def key_state_generator_loss(source: FeatureSource, scale: float = 0.1, loss: str = "softplus") -> Term:
    """The student's adversarial loss on the state that its call leads to.

    Its gradient reaches the student through its last call alone.
    """

    def term(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        state, until, key = landed(networks, samples)
        with torch.enable_grad():
            x = state.detach().requires_grad_()
            logits = networks.need("adversary")[key](source(networks, batch, x, until))
            value = scale * LOSSES[loss][0](logits).mean()
            (gradient,) = torch.autograd.grad(value, x)
        through = (state * gradient).sum()
        return through + (value - through).detach(), {"fooled": logits.detach().mean()}

    return term


@part
def key_state_discriminator_loss(source: FeatureSource, loss: str = "softplus") -> Term:
    """The discriminator's own loss; the mean logits of both sides are logged.

    Raises:
        FewstepError: when called: no store, or none of its states lies where the student's call led to.
    """

    def term(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        with torch.no_grad():
            state, until, key = landed(networks, samples)
            path, times = stored(batch), batch.times
            keys = (networks.student.process.noisiest, float(until[0]))
            at = int(key_positions(times, keys, networks.student.process)[1])  # type: ignore[arg-type]
            seen = [source(networks, batch, x.to(state), until) for x in (path[:, at], state)]
        real, fake = (networks.need("adversary")[key](features) for features in seen)
        return LOSSES[loss][1](real, fake).mean(), {"real": real.detach().mean(), "fake": fake.detach().mean()}

    return term


def landed(networks: Networks, samples: Samples | None) -> tuple[Tensor, Tensor, int]:
    """The states (B, ...) that the student's last call leads to, their times (B,), and which call it was.

    Raises:
        FewstepError: no roll-out, or calls that differ within the batch.
    """
    if samples is None or bool((samples.index != samples.index[0]).any()):
        hint = "Give the method a backward_simulation with each=False."
        raise FewstepError("key states need a roll-out with one call for the whole batch", hint=hint)
    frame = JumpCoefficients.of(networks.student.process, samples.time, samples.next_time)
    return frame.express(samples.clean, samples.state, "state"), samples.next_time, int(samples.index[0])
