"""What every searcher works on: candidates, their scores under common random numbers, and what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.plan import Plan
from fewstep.search.family import Family


class Objective(Protocol):
    """Scores a plan; higher is better.

    size: number of items (prompt and seed pairs; every candidate sees the same ones, hence the same noise).
    per_item: whether `__call__` returns one score per item (n,), or one score for the whole set ().
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


@dataclass(frozen=True)
class Evaluation:
    """One candidate looked at: its numbers, mean score over the first `items` items, and the cost so far."""

    theta: tuple[float, ...]
    value: float
    items: int
    spent: float


@dataclass(frozen=True)
class Outcome:
    """The best candidate that was scored on all items.

    gain: paired differences to the identity per item (n,), or None for a set-level objective.
    spent: network calls, in units of one candidate on all items.
    """

    theta: tuple[float, ...]
    value: float
    identity_value: float
    spent: float
    on_boundary: bool
    gain: tuple[float, ...] | None
    history: tuple[Evaluation, ...] = field(repr=False)


class Problem:
    """A plan, a family and an objective, with memory.

    Items come in one fixed order and partial scores use its beginnings, so that a candidate looked at again at
    higher fidelity pays only for the new items. With `log`, every score is appended to a file; a killed search that
    starts again replays them and goes on where it stopped (searchers are deterministic given their seed).
    """

    def __init__(
        self,
        plan: Plan,
        family: Family,
        objective: Objective,
        *,
        log: Path | None = None,
        spent: float = 0.0,
        watch: Callable[[Evaluation], None] | None = None,
    ) -> None:
        if objective.size < 1:
            raise FewstepError("the objective has no items", mend="Give at least one prompt and one seed.")
        self.plan, self.family, self.objective = plan, family, objective
        self.spent, self.history, self._watch = spent, list[Evaluation](), watch
        self._scores: dict[tuple[float, ...], list[float]] = {}
        self._log = log
        self._replay = _read_log(log) if log else {}

    @property
    def size(self) -> int:
        """Numbers per candidate."""
        return self.family.size(self.plan.steps)

    def clip(self, theta: Tensor) -> Tensor:
        """The nearest candidate inside the box."""
        return theta.double().clamp(self.family.low, self.family.high)

    def score(self, theta: Tensor, fraction: float = 1.0) -> float:
        """Mean score of a candidate over the first `fraction` of the items (at least one)."""
        key = tuple(round(float(v), 9) for v in self.clip(theta))
        count = max(1, min(self.objective.size, round(fraction * self.objective.size)))
        scores = self._scores.setdefault(key, [])
        if self.objective.per_item:
            if len(scores) < count:
                self._extend(key, scores, range(len(scores), count))
            value = sum(scores[:count]) / count
        else:
            value = self._set_level(key, count)
        evaluation = Evaluation(key, value, count, self.spent)
        self.history.append(evaluation)
        if self._watch is not None:
            self._watch(evaluation)
        return value

    def pay(self, items: float, times: float = 1.0) -> None:
        """Count network calls made outside `score` (a gradient costs about three forward passes)."""
        self.spent += times * items / self.objective.size

    def outcome(self) -> Outcome:
        """The best of all fully scored candidates, the identity among them."""
        identity = self.family.identity(self.plan.steps)
        identity_value = self.score(identity)
        full = [e for e in self.history if e.items == self.objective.size]
        best = max(full, key=lambda e: e.value)
        gain = None
        if self.objective.per_item:
            ours, theirs = self._scores[best.theta], self._scores[tuple(identity.tolist())]
            gain = tuple(a - b for a, b in zip(ours, theirs, strict=False))
        return Outcome(
            theta=best.theta,
            value=best.value,
            identity_value=identity_value,
            spent=self.spent,
            on_boundary=self.family.on_boundary(torch.tensor(best.theta)),
            gain=gain,
            history=tuple(self.history),
        )

    def _extend(self, key: tuple[float, ...], scores: list[float], items: range) -> None:
        known = self._replay.get((key, items.start, items.stop))
        if known is None:
            known = self._ask(key, items)
            self._write(key, items, known)
        scores += known
        self.pay(len(items))

    def _set_level(self, key: tuple[float, ...], count: int) -> float:
        items = range(count)
        known = self._replay.get((key, 0, count))
        if known is None:
            known = self._ask(key, items)
            self._replay[key, 0, count] = known
            self._write(key, items, known)
            self.pay(count)
        return known[0]

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
    """Scores of an earlier, perhaps killed, search; a last line cut short is ignored and removed."""
    if not log.exists():
        return {}
    known, whole = {}, []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        whole.append(line)
        known[tuple(entry["theta"]), entry["items"][0], entry["items"][1]] = entry["scores"]
    log.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return known
