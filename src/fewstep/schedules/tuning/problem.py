"""What every searcher works on: candidates, their scores under common random numbers, and what they cost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError, Stop
from fewstep.files import read_text, write_text
from fewstep.plan import Plan
from fewstep.schedules.tuning.family import Family
from fewstep.schedules.tuning.function import FunctionObjective, PlanFunction
from fewstep.schedules.tuning.outcome import CandidateScore, SearchOutcome

_BEGINNING = '{"theta": ['
"""Of every line of the log."""


Ahead = Callable[[Iterable[tuple[Plan, Sequence[int]]]], None]
"""Is told which plans will be asked for next, and on which items."""


class Objective(Protocol):
    """Scores a plan; higher is better.

    size: number of items (prompt and seed pairs; every candidate sees the same ones, hence the same noise).
    per_item: whether `__call__` returns one score per item (n,), or one score for the whole set ().

    One that several processes share also has `ahead` (see `Ahead`), and computes those plans side by side.
    """

    @property
    def size(self) -> int:
        """Number of items."""
        ...

    @property
    def per_item(self) -> bool:
        """Whether scores come one per item."""
        ...

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """Scores of these items."""
        ...


class Problem:
    """A plan, a family and an objective, with memory and a budget.

    Candidates that fold to the same plan are one: they are scored, and paid for, once. NaN counts as the worst score.
    Items come in one fixed order and partial scores use its beginnings, so that a candidate looked at again at
    higher fidelity pays only for the new items. With `log`, every score is appended to a file; a killed search that
    starts again replays them and goes on where it stopped (searchers are deterministic given their seed).

    Args:
        plan: what the candidates change.
        family: the numbers that describe a candidate.
        objective: what to maximise.
        log: file of scores.
        spent: network calls made before, in units of one candidate on all items.
        watch: called with every score.
        whole: every look is at all items: the objective cannot be asked for some of them at a lower price.

    Raises:
        FewstepError: the objective has no items, or `log` is another file.
    """

    def __init__(
        self,
        plan: Plan,
        family: Family,
        objective: Objective,
        *,
        log: Path | None = None,
        spent: float = 0.0,
        watch: Callable[[CandidateScore], None] | None = None,
        whole: bool = False,
    ) -> None:
        if objective.size < 1:
            raise FewstepError("the objective has no items", hint="Give at least one prompt and one seed.")
        self.plan, self.family, self.objective, self.whole = plan, family, objective, whole
        self.spent, self.history, self._watch = spent, list[CandidateScore](), watch
        self.budget = math.inf
        """Network calls that `score` may pay for in all; `searcher` sets it."""
        self._scores: dict[tuple[float, ...], list[float]] = {}
        self._sets: dict[tuple[tuple[float, ...], int], float] = {}
        self._log = log
        known = _read_log(log) if log else {}
        self._replay = {(self._folded(theta), *items): scores for (theta, *items), scores in known.items()}

    @classmethod
    def of(
        cls,
        plan: Plan,
        family: Family,
        function: PlanFunction,
        *,
        log: Path | None = None,
        watch: Callable[[CandidateScore], None] | None = None,
    ) -> Problem:
        """The problem of making a function of the plan as large as possible.

        Args:
            plan: what the candidates change; the function is called with it at once.
            family: the numbers that describe a candidate.
            function: a plan -> its score, or its scores on n items (n,), always the same ones: the outcome then has
                the gain of each. The searcher `gradient` needs a tensor that depends on the plan's coefficients.
            log, watch: as of a problem.

        Raises:
            FewstepError: the function gives neither a number nor a list of numbers, or `log` is another file.
        """
        return cls(plan, family, FunctionObjective.of(function, plan), log=log, watch=watch, whole=True)

    @property
    def size(self) -> int:
        """Numbers per candidate."""
        return self.family.size(self.plan.steps)

    def clip(self, theta: Tensor) -> Tensor:
        """The nearest candidate inside the box."""
        return theta.double().clamp(self.family.low, self.family.high)

    def share_of(self, fraction: float) -> int:
        """How many items a look at this fraction of them takes."""
        size = self.objective.size
        return size if self.whole else max(1, min(size, round(fraction * size)))

    def widen(self, factor: float = 1.5) -> None:
        """A box so many times as wide on both sides, where the best candidate lies on the edge of this one."""
        family = self.family
        self.family = dataclasses.replace(family, low=family.low / factor, high=family.high * factor)

    def score(self, theta: Tensor, fraction: float = 1.0) -> float:
        """Mean score of a candidate over the first `fraction` of the items (at least one).

        Raises:
            Stop: the items that are not known yet would cost more than is left; ends the search, never the program.
        """
        key = tuple(round(float(v), 9) for v in self.clip(theta))
        count = self.share_of(fraction)
        folded = self._folded(key)
        scores = self._scores.setdefault(folded, [])
        if self.objective.per_item:
            if len(scores) < count:
                self._extend(key, folded, scores, range(len(scores), count))
            value = sum(scores[:count]) / count
        else:
            value = self._set_level(key, folded, count)
        value = value if math.isfinite(value) else -math.inf
        evaluation = CandidateScore(key, value, count, self.spent)
        self.history.append(evaluation)
        if self._watch is not None:
            self._watch(evaluation)
        return value

    def ahead(self, thetas: Iterable[Tensor], fraction: float = 1.0) -> None:
        """Say which candidates will be scored next, as far as they can be paid for: an objective that several processes
        share computes them side by side. Changes no result."""
        tell: Ahead | None = getattr(self.objective, "ahead", None)
        if tell is None:
            return
        count, left, asked = self.share_of(fraction), self.left, dict[tuple[float, ...], tuple[Plan, range]]()
        for theta in thetas:
            key = tuple(round(float(v), 9) for v in self.clip(theta))
            folded = self._folded(key)
            items = range(len(self._scores.get(folded, ())) if self.objective.per_item else 0, count)
            known = (folded, count) in self._sets or (folded, items.start, items.stop) in self._replay
            left -= len(items) / self.objective.size
            if items and not known and left > -1e-9:
                asked[folded] = self.family.apply(self.plan, torch.tensor(key, dtype=torch.float64)), items
        tell(asked.values())

    @property
    def left(self) -> float:
        """What may still be spent."""
        return self.budget - self.spent

    @property
    def best(self) -> CandidateScore:
        """The best of all fully scored candidates so far, the earliest of equals."""
        return max((e for e in self.history if e.items == self.objective.size), key=lambda e: e.value)

    @property
    def whole_scores(self) -> list[float]:
        """Scores on all items, one of every different plan."""
        whole = [e for e in self.history if e.items == self.objective.size]
        return list({self._folded(e.theta): e.value for e in whole}.values())

    def pay(self, items: float, times: float = 1.0) -> None:
        """Count network calls made outside `score` (a gradient costs about three forward passes)."""
        self.spent += times * items / self.objective.size

    def outcome(self) -> SearchOutcome:
        """The best of all fully scored candidates, the identity among them."""
        identity = self.family.identity(self.plan.steps)
        identity_value = self.score(identity)
        best = self.best
        gain = None
        if self.objective.per_item:
            ours, theirs = (self._scores[self._folded(key)] for key in (best.theta, tuple(identity.tolist())))
            gain = tuple(a - b for a, b in zip(ours, theirs, strict=False))
        return SearchOutcome(
            theta=best.theta,
            value=best.value,
            identity_value=identity_value,
            spent=self.spent,
            on_boundary=self.family.on_boundary(torch.tensor(best.theta)),
            gain=gain,
            history=tuple(self.history),
        )

    def _folded(self, key: Sequence[float]) -> tuple[float, ...]:
        """What tells plans apart: the scalars of every row (a ramp over one row has numbers that change nothing)."""
        sample, output = self.family.expand(torch.tensor(key, dtype=torch.float64), self.plan.steps)
        return tuple(round(v, 9) for v in torch.cat([sample.flatten(), output.flatten()]).tolist())

    def _extend(self, key: tuple[float, ...], folded: tuple[float, ...], scores: list[float], items: range) -> None:
        self._refuse_beyond(len(items))
        known = self._replay.get((folded, items.start, items.stop))
        if known is None:
            known = self._ask(key, items)
            self._write(key, items, known)
        scores += known
        self.pay(len(items))

    def _set_level(self, key: tuple[float, ...], folded: tuple[float, ...], count: int) -> float:
        scored = self._sets.get((folded, count))
        if scored is None:
            self._refuse_beyond(count)
            known = self._replay.get((folded, 0, count))
            if known is None:
                known = self._ask(key, range(count))
                self._write(key, range(count), known)
            scored = self._sets[folded, count] = known[0]
            self.pay(count)
        return scored

    def _refuse_beyond(self, items: int) -> None:
        if items / self.objective.size > self.left + 1e-9:
            raise Stop

    def _ask(self, key: tuple[float, ...], items: range) -> list[float]:
        plan = self.family.apply(self.plan, torch.tensor(key, dtype=torch.float64))
        with torch.no_grad():
            return [float(v) for v in self.objective(plan, items).reshape(-1)]

    def _write(self, key: tuple[float, ...], items: range, scores: list[float]) -> None:
        if self._log is None:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"theta": key, "items": [items.start, items.stop], "scores": scores}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read_log(log: Path) -> dict[tuple[tuple[float, ...], int, int], list[float]]:
    """Scores of an earlier, perhaps killed, search; a last line cut short is ignored and removed.

    Raises:
        FewstepError: the file is another one; it stays as it is.
    """
    if not log.exists():
        return {}
    known = {}
    text = read_text(log)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            known[tuple(entry["theta"]), entry["items"][0], entry["items"][1]] = entry["scores"]
        except (ValueError, TypeError, LookupError) as error:
            cut = number == len(lines) - 1 and line.startswith(_BEGINNING[: len(line)])
            if not cut:
                raise FewstepError(f"{log} holds no scores of a search", hint="Name a new file.") from error
            lines = lines[:-1]
    if text != (whole := "".join(f"{line}\n" for line in lines)):
        write_text(log, whole, over="all")
    return known
