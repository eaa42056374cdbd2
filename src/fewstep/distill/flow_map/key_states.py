"""An adversary on the states between a student's calls: real ones are stored states of the teacher at the same times.

Nothing is noised again, since both sides live at the time of the key state (AccVideo, arXiv 2503.19462, sec. 4.3). The
student's states are those of its own chain: the method's roll-out is a `Simulation` without fresh noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.distill.adversary import LOSSES
from fewstep.distill.core import Batch, Cast, Loss, Made
from fewstep.distill.discriminator import Heads, Source
from fewstep.distill.flow_map.frame import Frame
from fewstep.distill.flow_map.intervals import positions
from fewstep.distill.flow_map.sources import stored
from fewstep.errors import FewstepError


class KeyedHeads(nn.Module):
    """One discriminator per key state."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Mapping[str, Tensor], key: int) -> Tensor:
        """Logits (B, L) of states at one key."""
        return self.heads[key](features)


@dataclass(frozen=True)
class KeyHeads:
    """Makes the heads: the `make` of an adversary with `count` key states after the first noise."""

    source: Source
    count: int
    kind: str = "point"

    def __call__(self, cast: Cast, shape: tuple[int, ...]) -> nn.Module:
        """The discriminator."""
        make = Heads(self.source, self.kind)
        return KeyedHeads([make(cast, shape) for _ in range(self.count)])


@dataclass(frozen=True)
class FoolAtKeys:
    """The student's adversarial loss on the state that its call leads to."""

    source: Source
    scale: float = 0.1
    loss: str = "softplus"

    def __call__(self, cast: Cast, batch: Batch, made: Made | None, generator: torch.Generator) -> Loss:
        """The loss; its gradient reaches the student through its last call alone."""
        state, until, key = landed(cast, made)
        with torch.enable_grad():
            x = state.detach().requires_grad_()
            logits = cast.need("adversary")(self.source(cast, batch, x, until), key)
            value = self.scale * LOSSES[self.loss][0](logits).mean()
            (gradient,) = torch.autograd.grad(value, x)
        through = (state * gradient).sum()
        return through + (value - through).detach(), {"fooled": logits.detach().mean()}


@dataclass(frozen=True)
class JudgeAtKeys:
    """The discriminator's own loss."""

    source: Source
    loss: str = "softplus"

    def __call__(self, cast: Cast, batch: Batch, made: Made | None, generator: torch.Generator) -> Loss:
        """The loss, and the mean logits of both sides.

        Raises:
            FewstepError: no store, or none of its states lies where the student's call led to.
        """
        with torch.no_grad():
            state, until, key = landed(cast, made)
            path, times = stored(batch), batch.times
            keys = (cast.student.process.noisiest, float(until[0]))
            at = int(positions(times, keys, cast.student.process)[1])  # type: ignore[arg-type]
            seen = [self.source(cast, batch, x.to(state), until) for x in (path[:, at], state)]
        real, fake = (cast.need("adversary")(features, key) for features in seen)
        return LOSSES[self.loss][1](real, fake).mean(), {"real": real.detach().mean(), "fake": fake.detach().mean()}


def landed(cast: Cast, made: Made | None) -> tuple[Tensor, Tensor, int]:
    """The states (B, ...) that the student's last call leads to, their times (B,), and which call it was.

    Raises:
        FewstepError: no roll-out, or calls that differ within the batch.
    """
    if made is None or bool((made.index != made.index[0]).any()):
        mend = "Give the method a Simulation with each=False."
        raise FewstepError("key states need a roll-out with one call for the whole batch", mend=mend)
    frame = Frame.of(cast.student.process, made.time, made.until)
    return frame.express(made.clean, made.state, "state"), made.until, int(made.index[0])
