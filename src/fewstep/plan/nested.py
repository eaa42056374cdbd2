"""Plans of plans: an outer index (chunk, scale, token group), and for each of its values an ordinary plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from fewstep.errors import PlanError, nearest
from fewstep.files import check_free, read_json, write_json
from fewstep.plan import checks
from fewstep.plan.files import MOST_BYTES
from fewstep.plan.plan import Plan
from fewstep.shown import html_table

SCHEMA = 1
"""Version of the file; a reader refuses newer ones."""

Index = Literal["chunk", "scale", "group"]
"""What the outer index counts: pieces along one axis (of a video, in time), resolutions, groups of tokens."""


@dataclass(frozen=True)
class PlanEntry:
    """How one value of the outer index is sampled.

    Attributes:
        plan: number of its plan in `NestedPlan.plans`: steps, times and coefficients.
        length: positions that it makes along the axis of the index; None: those of the shape that a run is given.
        overlap: how many positions before its own its network is shown; None: all of the part before, 0: none.
        guidance: scale for the rows of the plan that set none.
        context_noise: process time up to which these positions are noised before they are shown; 0 is clean.

    Raises:
        PlanError: a number out of its range.
    """

    plan: int = 0
    length: int | None = None
    overlap: int | None = None
    guidance: float | None = None
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("plan", 0), ("length", 1), ("overlap", 0)):
            value = getattr(self, name)
            if name != "plan" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanError(f"{name} must be a whole number from {least} on", value=value)
        checks.guidance("guidance", self.guidance)
        checks.plain_number("context_noise", self.context_noise)
        if not 0 <= self.context_noise < math.inf:
            raise PlanError("context_noise is a time of the process", value=self.context_noise, hint="0 is clean.")


@dataclass(frozen=True, eq=False)
class NestedPlan:
    """A plan for every value of an outer index; `fewstep.nested.sample_nested` runs it. Immutable; JSON on disk.

    Attributes:
        plans: ordinary plans, each once.
        entries: one for each value of the index, in order.
        index: what it counts.
        endless: whether the last entry holds for every further value too: a stream.
        origin: how the plan was made, for people.

    Raises:
        PlanError: no plans or entries or too many of them, an entry whose plan is not there, a plan that no entry uses,
            an unknown index, or scales with an overlap that is counted in positions.
    """

    plans: tuple[Plan, ...]
    entries: tuple[PlanEntry, ...] = (PlanEntry(),)
    index: Index = "chunk"
    endless: bool = True
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index not in get_args(Index):
            raise PlanError("unknown outer index", value=self.index, hint=nearest(str(self.index), get_args(Index)))
        for name in ("plans", "entries"):
            count = len(getattr(self, name))
            if not 1 <= count <= checks.MOST_ROWS:
                raise PlanError(f"a plan of plans has 1 to {checks.MOST_ROWS} {name}", value=count)
        used = {entry.plan for entry in self.entries}
        if max(used) >= len(self.plans):
            raise PlanError(f"there are plans 0 to {len(self.plans) - 1}", value=max(used), hint="Correct the entry.")
        if unused := sorted(set(range(len(self.plans))) - used):
            raise PlanError("no entry uses these plans", value=unused, hint="Leave them out.")
        if self.index == "scale" and any(entry.overlap for entry in self.entries):
            raise PlanError("scales show each other as a whole", hint="Use overlap None, or 0 for none.")
        object.__setattr__(self, "origin", checks.plain_values("origin", self.origin))
        object.__setattr__(self, "_guided", {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NestedPlan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.entries)

    def entry(self, k: int) -> PlanEntry:
        """What value k of the index is sampled with.

        Raises:
            PlanError: there is none.
        """
        if k < 0 or (k >= len(self) and not self.endless):
            hint = "Ask for fewer, or let the last entry repeat (endless=True)."
            raise PlanError(
                f"this plan has values 0 to {len(self) - 1} of its index, a {self.index}", value=k, hint=hint
            )
        return self.entries[min(k, len(self) - 1)]

    def plan(self, k: int) -> Plan:
        """The ordinary plan of value k, with the entry's guidance in the rows that set none."""
        entry = self.entry(k)
        made: dict[tuple[int, float | None], Plan] = vars(self)["_guided"]
        key = (entry.plan, entry.guidance)
        if key not in made:
            made[key] = _guided(self.plans[entry.plan], entry.guidance)
        return made[key]

    def steps(self, k: int) -> int:
        """Network evaluations of value k."""
        return self.plans[self.entry(k).plan].steps

    def evaluations(self, count: int) -> int:
        """Network evaluations of the first `count` values."""
        return sum(self.steps(k) for k in range(count))

    def with_plan(self, number: int, plan: Plan) -> NestedPlan:
        """A copy with another plan in place of `plans[number]`: what a search of an ordinary plan found."""
        if not 0 <= number < len(self.plans):
            raise PlanError(f"there are plans 0 to {len(self.plans) - 1}", value=number)
        return dataclasses.replace(self, plans=(*self.plans[:number], plan, *self.plans[number + 1 :]))

    def summary(self) -> str:
        """The plan in one line."""
        steps = ", ".join(str(self.steps(k)) for k in range(min(len(self), 8))) + (", ..." if len(self) > 8 else "")
        return f"NestedPlan({len(self)} {self.index}s{' and on' if self.endless else ''}, steps {steps})"

    def __repr__(self) -> str:
        """One line, and the plans."""
        return "\n".join([self.summary(), *(f"  {number}: {plan.summary()}" for number, plan in enumerate(self.plans))])

    def _repr_html_(self) -> str:
        """Its entries for notebooks."""
        names = [f.name for f in dataclasses.fields(PlanEntry)]
        rows = [[str(k), str(self.steps(k)), *(str(getattr(e, n)) for n in names)] for k, e in enumerate(self.entries)]
        return html_table([self.index, "steps", *names], rows, self.summary())

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "fewstep_nested_plan": SCHEMA,
            "index": self.index,
            "endless": self.endless,
            "entries": [dataclasses.asdict(entry) for entry in self.entries],
            "plans": [plan.to_dict() for plan in self.plans],
            "origin": dict(self.origin),
        }

    @classmethod
    def from_dict(cls, document: Any) -> NestedPlan:
        """A plan from JSON values.

        Raises:
            PlanError: no plan of plans, of a newer schema, an unknown or missing key, or a value of the wrong kind.
        """
        if not isinstance(document, Mapping) or "fewstep_nested_plan" not in document:
            hint = "Write one with NestedPlan.save; an ordinary plan is read by Plan.load."
            raise PlanError("not a plan of plans: the key fewstep_nested_plan is missing", hint=hint)
        version = document["fewstep_nested_plan"]
        if version != SCHEMA:
            raise PlanError("this plan of plans is of another schema", value=version, hint="Update fewstep.")
        wanted = {"fewstep_nested_plan", *(f.name for f in dataclasses.fields(cls))}
        for key in sorted(set(document) ^ wanted):
            state = "missing" if key in wanted else "unknown"
            raise PlanError(f"key {key} of the plan of plans is {state}", hint=nearest(key, wanted))
        plans = document["plans"]
        if not isinstance(plans, list) or len(plans) > checks.MOST_ROWS:
            raise PlanError("plans must be a list", value=type(plans).__name__)
        return cls(tuple(_plans(plans)), _entries(document["entries"]), *_settings(document))

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the plan as JSON, atomically; tensor coefficients are nested lists in it.

        overwrite: replace an earlier file of fewstep. Other files are never replaced (FewstepError).
        """
        check_free(path, overwrite)
        write_json(path, self.to_dict(), over="ours" if overwrite else "nothing", most=MOST_BYTES)

    @classmethod
    def load(cls, path: str | Path) -> NestedPlan:
        """Read and validate a file.

        Raises:
            FewstepError: the file is absent, too large, not JSON, or names a key twice.
            PlanError: it is JSON, but not a valid plan of plans.
        """
        return cls.from_dict(read_json(path, most=MOST_BYTES, unique=True))


def nested_plan(plans: Sequence[Plan], *, index: Index = "chunk", endless: bool = True, **entry: Any) -> NestedPlan:
    """A plan of plans from one plan for each value of the index; equal ones are kept once.

    Args:
        plans: in order.
        index: what the index counts.
        endless: whether the last holds for every further value too.
        entry: fields of `PlanEntry` that all values share, such as `length` and `overlap`.
    """
    kept: list[Plan] = []
    numbers: list[int] = []
    known: dict[int, int] = {}
    for plan in plans:
        if id(plan) not in known:
            same = next((number for number, other in enumerate(kept) if other == plan), None)
            known[id(plan)] = len(kept) if same is None else same
            kept += [plan] if same is None else []
        numbers.append(known[id(plan)])
    return NestedPlan(tuple(kept), tuple(PlanEntry(number, **entry) for number in numbers), index, endless)


def _guided(plan: Plan, guidance: float | None) -> Plan:
    if guidance is None:
        return plan
    rows = tuple(row if row.guidance is not None else dataclasses.replace(row, guidance=guidance) for row in plan.rows)
    return plan.replace(rows=rows)


def _plans(documents: Sequence[Any]) -> Iterator[Plan]:
    for number, document in enumerate(documents):
        try:
            yield Plan.from_dict(document)
        except PlanError as error:
            raise PlanError(f"plans.{number}: {error}") from error


def _entries(documents: Any) -> tuple[PlanEntry, ...]:
    names = {f.name for f in dataclasses.fields(PlanEntry)}
    if not isinstance(documents, list) or len(documents) > checks.MOST_ROWS:
        raise PlanError("entries must be a list of objects", value=type(documents).__name__)
    for k, document in enumerate(documents):
        if not isinstance(document, dict) or set(document) - names:
            raise PlanError(f"entries.{k} may hold {', '.join(sorted(names))}", value=document)
    try:
        return TypeAdapter(tuple[PlanEntry, ...]).validate_python(documents, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"entries.{place}: {first['msg']}", value=first.get("input")) from error


def _settings(document: Mapping[str, Any]) -> tuple[Any, bool, Mapping[str, Any]]:
    endless = document["endless"]
    if not isinstance(endless, bool):
        raise PlanError("endless must be true or false", value=endless)
    return document["index"], endless, document["origin"]
