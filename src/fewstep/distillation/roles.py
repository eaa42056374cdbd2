"""Who is trained beside the student, and how: critic, discriminator, target network, optimisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from fewstep.distillation.core import Networks, Term


@dataclass(frozen=True)
class UpdateRule:
    """How a network beside the student keeps up with it.

    Attributes:
        ratio: its updates per update of the student; the first sees the student's own samples, the others fresh ones.
        learning_rate: as a multiple of the student's.
        pull: after each update of the student its weights move this share of the way to the student's (arXiv
            2506.00523: 0.03); needs equal architectures.
        betas: of Adam; the student's unless given.
    """

    ratio: int = 1
    learning_rate: float = 1.0
    pull: float = 0.0
    betas: tuple[float, float] | None = None


@dataclass(frozen=True)
class Critic:
    """The network that follows the student's distribution; a copy of the teacher at the start.

    Attributes:
        term: its loss.
        tracking: how it keeps up.
        calls: how many calls of the student it distinguishes; 0: it follows the mixture of all of them.
    """

    term: Term
    tracking: UpdateRule = field(default_factory=UpdateRule)
    calls: int = 0


@dataclass(frozen=True)
class Adversary:
    """The discriminator.

    Attributes:
        make: (networks, shape of one sample) -> its module, in `Networks.adversary` from then on.
        term: its own loss; the student's adversarial loss is one of `Method.terms`.
        tracking: how it keeps up.
        with_critic: train the critic with this loss too, in the same update (DMD2: a head on the critic's features).
    """

    make: Callable[[Networks, tuple[int, ...]], nn.Module]
    term: Term
    tracking: UpdateRule = field(default_factory=UpdateRule)
    with_critic: bool = False


@dataclass(frozen=True)
class TargetNetwork:
    """The slow student in `Networks.target`: target <- decay target + (1 - decay) student after every `every`-th step.

    decay 0, every 1: the live student itself (no copy is kept). decay mu, every 1: its moving average. decay 0, every
    N: the student at the end of the previous stage (progressive distillation); the teacher at first.

    Attributes:
        decay: as in the formula.
        every: likewise.
        until: where the last stage begins: the target rests after this step, however long that stage is.
        warm: the decay begins low, as that of the averages that training saves: how the student began is forgotten.
    """

    decay: float = 0.0
    every: int = 1
    until: int | None = None
    warm: bool = False

    def share(self, step: int) -> float:
        """How much of the way to the student it goes after step `step` (from 1)."""
        return 1 - (warmed_up(self.decay, step) if self.warm else self.decay)

    def moves(self, step: int) -> bool:
        """Whether it follows the student after step `step` (from 1)."""
        return step % self.every == 0 and (self.until is None or step <= self.until)

    @property
    def live(self) -> bool:
        """Whether it is the student itself."""
        return self.decay == 0 and self.every == 1 and self.until is None


def warmed_up(decay: float, updates: int) -> float:
    """The decay of a moving average at its update number `updates` (from 1): min(decay, (1 + t) / (10 + t))."""
    return min(decay, (1 + updates) / (10 + updates))


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimisation that the method is known to like; a recipe may change each value."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    decay: bool = False
    """Cosine to zero at the end, rather than constant."""
    clip_norm: float = 1.0
    ema: float = 0.999
    rates: tuple[tuple[float, float], ...] = ()
    """Stages of the learning rate: (share of the training that it lasts to, multiple of `learning_rate`)."""
    optimizer: str = "adamw"
