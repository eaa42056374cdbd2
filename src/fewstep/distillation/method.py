"""A distillation method as data: the parts of its losses, who is trained beside the student, how the student is run.

A preset is one function in one module of `fewstep.distillation.presets`, registered by name:

    @preset("dmd2", reads_layers=True)
    def dmd2(process: Process, *, steps: int = 4, guidance: float = 4.5) -> Method: ...

It takes the process of the teacher first, so that every time it writes down is a time of that process. What others
must know of a method before it is built stands in the decorator (`Preset`), all else in `Method`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Networks, Rollout, Term
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process
from fewstep.registry import Registry


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


@dataclass(frozen=True)
class Method:
    """What is trained on what.

    Attributes:
        terms: summands of the student's loss by name (the names appear in logs and messages); weights are inside them.
        steps: how the finished student is run; becomes the plan that it is saved with.
        rollout: how the student makes the samples that the terms see; None where they make their own input.
        critic: follows the student's distribution.
        adversary: tells real data from the student's samples.
        target: the slow student.
        needs: of "data" (`Batch.clean`), "store" (`Batch.path`, `Batch.times`) and "guidance" (a negative condition,
            where the teacher is conditional).
        two_times: whether the student's network takes the time that its jump ends at.
        settings: optimisation that the method likes.
        updates: how many its stages take; a shorter training, which would end before the last one, is refused.

    Raises:
        FewstepError: no terms, unknown needs, or an adversary that is trained with a critic that is not there.
    """

    terms: Mapping[str, Term]
    steps: Chain
    rollout: Rollout | None = None
    critic: Critic | None = None
    adversary: Adversary | None = None
    target: TargetNetwork | None = None
    needs: frozenset[str] = frozenset()
    two_times: bool = False
    settings: OptimizerSettings = field(default_factory=OptimizerSettings)
    updates: int = 0

    def __post_init__(self) -> None:
        if not self.terms:
            raise FewstepError("a method needs at least one term", hint="Give the student something to learn.")
        unknown = set(self.needs) - {"data", "store", "guidance"}
        if unknown:
            raise FewstepError("unknown need of a method", value=sorted(unknown), hint="data, store or guidance.")
        if self.adversary is not None and self.adversary.with_critic and self.critic is None:
            raise FewstepError("this adversary is trained with a critic", hint="Give the method a critic.")


def needing(*, data: bool = False, store: bool = False, guided: bool = False) -> frozenset[str]:
    """`Method.needs` in words; guided: the teacher is asked without its condition too."""
    return frozenset(need for need, is_so in {"data": data, "store": store, "guidance": guided}.items() if is_so)


Make = Callable[..., Method]
"""(process, *, options) -> Method."""
Lengths = Callable[[int, Mapping[str, Any]], dict[str, int]]
"""(updates of the training, all options) -> the options that count stages in updates, laid over that training."""


@dataclass(frozen=True)
class Preset:
    """A published method by name, with what is known of it before it is built.

    Attributes:
        make: (process, *, options) -> Method.
        guidance: whether the student can learn a guidance of its teacher, by an option or from its samples.
        reads_layers: whether the options `modules` and `channels` name layers that an adversary looks at.
        staged: whether updates late in the training may cost more or less than the first.
        lengths: how its stages fit a training of so many updates; None: shares of the training fit any.
    """

    make: Make
    guidance: bool = True
    reads_layers: bool = False
    staged: bool = False
    lengths: Lengths | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the options."""
        parameters = list(inspect.signature(self.make).parameters.values())[1:]
        return {p.name: p.default for p in parameters}


_PRESETS: Registry[Preset] = Registry(
    "distillation method",
    "fewstep.methods",
    package="fewstep.distillation.presets",
    decorator="fewstep.distillation.method.preset",
    source=lambda known: known.make,
)


def preset(name: str, **facts: Any) -> Callable[[Make], Make]:
    """Decorator of `(process, *, options) -> Method`; the first line of its docstring is shown in lists.

    Args:
        name: of the method.
        facts: fields of `Preset`.
    """

    def join(make: Make) -> Make:
        _PRESETS.register(name)(Preset(make, **facts))
        return make

    return join


def presets() -> dict[str, str]:
    """Name and one line of every preset, those of other packages too."""
    return {name: (inspect.getdoc(known.make) or "").partition("\n")[0] for name, known in sorted(_PRESETS.items())}


def options_of(name: str) -> dict[str, Any]:
    """Names and defaults of a preset's options."""
    return find_preset(name).options


def method(name: str, process: Process, **options: Any) -> Method:
    """The method of that name for this process.

    Raises:
        FewstepError: no such preset or option.
    """
    found = find_preset(name)
    known = found.options
    for option in options:
        if option not in known:
            raise FewstepError(f"{name} has no option {option!r}", value=options[option], hint=nearest(option, known))
    return found.make(process, **options)


def stages_over(name: str, updates: int, **options: Any) -> dict[str, int]:
    """Further options of a preset, which lay the stages that it counts in updates over a training of so many.

    Args:
        name: of the preset.
        updates: of the training.
        options: those that the preset is given besides.

    Returns:
        The options; none for a preset without such stages.
    """
    found = find_preset(name)
    return {} if found.lengths is None else found.lengths(updates, {**found.options, **options})


def fitting_options(name: str, process: Process, updates: int, **options: Any) -> dict[str, Any]:
    """The options, with stages laid over a training of so many updates where the preset's own would outlast it.

    Args:
        name: of the preset.
        process: of the teacher.
        updates: of the training.
        options: those that were chosen; they stay as they are.
    """
    if method(name, process, **options).updates <= updates:
        return options
    return {**stages_over(name, updates, **options), **options}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        FewstepError: there is none.
    """
    return _PRESETS.find(name)
