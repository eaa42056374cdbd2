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
from dataclasses import dataclass, field, fields
from typing import Any

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Rollout, Term
from fewstep.distillation.roles import Adversary, Critic, OptimizerSettings, TargetNetwork
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process
from fewstep.registry import Registry
from fewstep.shown import html_table

NEEDS = frozenset({"data", "store", "guidance", "pairs", "reward", "reference"})


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
        needs: of "data" (`Batch.clean`), "store" (`Batch.path`, `Batch.times`), "guidance" (a negative condition, where
            the teacher is conditional), "pairs" (`Batch.rejected`), "reward", "reference" (the student as it began).
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
        unknown = set(self.needs) - NEEDS
        if unknown:
            raise FewstepError("unknown need of a method", value=sorted(unknown), hint=", ".join(sorted(NEEDS)))
        if self.adversary is not None and self.adversary.with_critic and self.critic is None:
            raise FewstepError("this adversary is trained with a critic", hint="Give the method a critic.")

    def written(self) -> str:
        """The whole method as text: equal texts are equal methods."""
        found = {f.name: getattr(self, f.name) for f in fields(self)} | {"needs": sorted(self.needs)}  # sets: any order
        return f"Method({', '.join(f'{name}={value!r}' for name, value in found.items())})"

    def __repr__(self) -> str:
        """The method in one line; `outline` shows its parts, `written` all of it."""
        beside = [name for name in ("critic", "adversary", "target") if getattr(self, name) is not None]
        more = [f"beside the student: {', '.join(beside)}"] if beside else []
        more += [f"needs {', '.join(sorted(self.needs))}"] if self.needs else []
        return "; ".join([f"Method({len(self.steps)} steps; {' + '.join(self.terms)}", *more]) + ")"

    def _repr_html_(self) -> str:
        """Its parts for notebooks."""
        parts = {name: getattr(self, name) for name in ("steps", "rollout", "critic", "adversary", "target")}
        rows = {**self.terms, **{name: value for name, value in parts.items() if value is not None}}
        return html_table(["part", ""], [[name, repr(value)] for name, value in rows.items()], repr(self))


def needing(
    *,
    data: bool = False,
    store: bool = False,
    guided: bool = False,
    pairs: bool = False,
    reward: bool = False,
    reference: bool = False,
) -> frozenset[str]:
    """`Method.needs` in words; guided: the teacher is asked without its condition too."""
    asked = {"data": data, "store": store, "guidance": guided, "pairs": pairs, "reward": reward, "reference": reference}
    return frozenset(need for need, is_so in asked.items() if is_so)


Make = Callable[..., Method]
"""(process, *, options) -> Method; of an alignment (process, chain, *, options)."""
Lengths = Callable[[int, Mapping[str, Any]], dict[str, int]]
"""(updates of the training, all options) -> the options that count stages in updates, laid over that training."""


@dataclass(frozen=True)
class Preset:
    """A published method by name, with what is known of it before it is built.

    Attributes:
        make: see `Make`; every option has a default.
        guidance: whether the student can learn a guidance of its teacher, by an option or from its samples.
        reads_layers: whether the options `modules` and `channels` name layers that an adversary looks at.
        staged: whether updates late in the training may cost more or less than the first.
        lengths: how its stages fit a training of so many updates; None: shares of the training fit any.
        votes: of an alignment: whether it learns from pairs that people chose from, rather than from rewards.
        distils: of an alignment: whether it needs the teacher.
        gradient: of an alignment: whether its rewards must be differentiable.
    """

    make: Make
    guidance: bool = True
    reads_layers: bool = False
    staged: bool = False
    lengths: Lengths | None = None
    votes: bool = False
    distils: bool = False
    gradient: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the options."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}


PRESETS: Registry[Preset] = Registry(
    "distillation method",
    "fewstep.methods",
    package="fewstep.distillation.presets",
    decorator="fewstep.distillation.method.preset",
    source=lambda known: known.make,
)


def preset(name: str, table: Registry[Preset] = PRESETS, **facts: Any) -> Callable[[Make], Make]:
    """Decorator of `(process, *, options) -> Method`; the first line of its docstring is shown in lists.

    Args:
        name: of the method.
        table: what it joins; `fewstep.alignment.presets.ALIGNMENTS` holds those of (process, chain, *, options).
        facts: fields of `Preset`.
    """

    def join(make: Make) -> Make:
        table.register(name)(Preset(make, **facts))
        return make

    return join


def presets() -> dict[str, str]:
    """Name and one line of every preset, those of other packages too."""
    return {name: (inspect.getdoc(known.make) or "").partition("\n")[0] for name, known in sorted(PRESETS.items())}


def options_of(name: str) -> dict[str, Any]:
    """Names and defaults of a preset's options."""
    return find_preset(name).options


def method(name: str, process: Process, **options: Any) -> Method:
    """The method of that name for this process.

    Raises:
        FewstepError: no such preset or option.
    """
    found = find_preset(name)
    check_options(name, options, found.options)
    return found.make(process, **options)


def check_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have.

    Raises:
        FewstepError: one of them.
    """
    for option in options:
        if option not in known:
            raise FewstepError(f"{name} has no option {option!r}", value=options[option], hint=nearest(option, known))


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
    return PRESETS.find(name)
