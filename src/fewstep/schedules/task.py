"""What a schedule search is asked for, and what it found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fewstep.errors import PlanError
from fewstep.plan import Plan
from fewstep.schedules.candidate import Candidate, ModelInfo
from fewstep.schedules.learnable import BoundSolver
from fewstep.schedules.trajectory import Trajectory
from fewstep.schedules.tuning.problem import Objective
from fewstep.shown import html_table
from fewstep.solvers import unipc

WORST = -1e6
"""The value of a schedule that gives NaN, or cannot be built."""


@dataclass
class SearchTask:
    """One schedule to find.

    Args:
        objective: what to maximise over its items.
        trajectory: the teacher's, from which times are read.
        budget: evaluations of one plan on all items; a gradient step counts as three of its items.
        solver: what runs on a searched grid where the method does not choose the solver itself.
        storage: where evolutionary searches keep every evaluation (`EvaluationPool`); a file in `scratch` unless given.
        scratch: folder of a search's checkpoints; a killed search goes on from them.
        parts: what evolutionary searches vary (`space.PARTS`); the method's own choice unless given.
        most_skipped: largest share of a row's blocks that may be skipped.
        watch: called with (evaluations spent, best value) as the search goes.
    """

    model: ModelInfo
    steps: int
    objective: Objective
    trajectory: Trajectory
    budget: int = 200
    seed: int = 0
    solver: BoundSolver = field(default=unipc)
    end: float | None = None
    storage: str | Path | None = None
    scratch: Path | None = None
    parts: frozenset[str] = frozenset()
    most_skipped: float = 0.1
    name: str = "schedule"
    watch: Callable[[float, float], None] | None = None

    def value(self, plan: Plan) -> float:
        """Mean score of a plan over all items; NaN counts as the worst."""
        with torch.no_grad():
            value = float(self.objective(plan, range(self.objective.size)).mean())
        return value if math.isfinite(value) else WORST

    def score(self, candidate: Candidate) -> float:
        """Mean score of a candidate; one that cannot be built is the worst."""
        try:
            return self.value(candidate.plan(self.model))
        except PlanError:
            return WORST

    def note(self, spent: float, value: float) -> None:
        """Tell who watches."""
        if self.watch is not None:
            self.watch(spent, value)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        plan: with plain numbers, ready to be saved.
        value: its score on the search's own items.
        spent: evaluations of one plan on all items; rounds, of a bare descent.
        history: (spent, value) of every plan looked at.
    """

    plan: Plan
    value: float
    spent: float
    history: tuple[tuple[float, float], ...] = ()

    def __repr__(self) -> str:
        looks = len(self.history)
        return f"SearchResult(value {self.value:.5g}, spent {self.spent:g} on {looks} looks)\n{self.plan!r}"

    def _repr_html_(self) -> str:
        """The numbers and the plan, for notebooks."""
        facts = [["value", f"{self.value:.5g}"], ["spent", f"{self.spent:g}"], ["looks", str(len(self.history))]]
        return html_table(["", "found"], facts, "SearchResult") + self.plan._repr_html_()
