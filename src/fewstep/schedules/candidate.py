"""One point of the search space: everything that fixes a plan for a model, as plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers import Decision, ModelStatistics, analytic_first_step, grids, per_step


@dataclass(frozen=True)
class ModelInfo:
    """What turning a candidate into a plan needs to know of the model.

    statistics: fitted statistics of DPM-Solver-v3, where the form `fitted` may be used.
    blocks: number of prunable blocks of the backbone, where layers may be skipped.
    data_std, mean: of the states at the clean end, for analytic first steps.
    """

    process: Process
    prediction: Prediction
    statistics: ModelStatistics | None = None
    blocks: int = 0
    data_std: float = 1.0
    mean: Tensor | None = None


@dataclass(frozen=True)
class Candidate:
    """A solver schedule (arXiv 2312.07243): times, one decision per step, and what is done beside them.

    times: falling process times of the rows; end: where the last row ends, None for clean.
    first: `network`, or the formula of the analytic first step that replaces the first evaluation.
    skipped: per row, numbers of the blocks that are skipped (arXiv 2309.10438); empty for none anywhere.
    scales: Q-Sched's ramp (s_first, s_last, m_first, m_last) (arXiv 2509.01624).
    """

    times: tuple[float, ...]
    decisions: tuple[Decision, ...]
    end: float | None = None
    first: str = "network"
    skipped: tuple[tuple[int, ...], ...] = ()
    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.times) != len(self.decisions) or len(self.skipped) not in (0, len(self.times)):
            sizes = (len(self.times), len(self.decisions), len(self.skipped))
            raise FewstepError("a candidate needs one decision (and one skip list) per time", value=sizes)

    def cost(self, blocks: int = 0) -> float:
        """Network evaluations, a skipped block counted as its share."""
        share = sum(map(len, self.skipped)) / blocks if blocks else 0.0
        return len(self.times) - (self.first != "network") - share

    def plan(self, model: ModelInfo) -> Plan:
        """The plan of this candidate.

        Raises:
            PlanError: the times do not fall, or a decision needs what the model does not have.
        """
        grid = grids.given(self.times, self.end)
        plan = per_step(model.process, model.prediction, grid, decisions=self.decisions, statistics=model.statistics)
        if self.scales != (1.0, 1.0, 1.0, 1.0):
            s0, s1, m0, m1 = self.scales
            plan = plan.scaled(torch.linspace(s0, s1, plan.steps), torch.linspace(m0, m1, plan.steps))
        plan = skipping(plan, self.skipped)
        if self.first != "network":
            plan = analytic_first_step(plan, self.first, data_std=model.data_std, mean=model.mean)
        return plan.replace(origin={**plan.origin, "candidate": self.document()})

    def document(self) -> dict[str, Any]:
        """The candidate as JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_document(cls, values: Mapping[str, Any]) -> Candidate:
        """The candidate of a document."""
        return cls(
            times=tuple(values["times"]),
            decisions=tuple(Decision(**decision) for decision in values["decisions"]),
            end=values["end"],
            first=values["first"],
            skipped=tuple(tuple(blocks) for blocks in values["skipped"]),
            scales=tuple(values["scales"]),
        )

    @property
    def key(self) -> str:
        """What tells one candidate from another."""
        return json.dumps(self.document(), sort_keys=True)

    def folded(self, model: ModelInfo) -> str:
        """What tells its plan from those of others: decisions without effect (an order that no row reaches, a corrector
        after the last call) make no new schedule.
        """
        try:
            document = self.plan(model).replace(origin={}).to_dict()
        except PlanError:
            return self.key
        return json.dumps(_rounded(document), sort_keys=True)


def _rounded(value: Any) -> Any:
    """JSON values with floats to ten digits: the same coefficients may be reached along two ways."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return f"{value:.10g}" if isinstance(value, float) else value


def skipping(plan: Plan, skipped: Sequence[Sequence[int]]) -> Plan:
    """The plan whose rows leave these blocks of the network out (`fewstep.variants`); empty for none anywhere."""
    if not any(skipped):
        return plan
    rows = (
        dataclasses.replace(row, network="skip:" + ",".join(map(str, blocks))) if blocks else row
        for row, blocks in zip(plan.rows, skipped, strict=True)
    )
    return plan.replace(rows=tuple(rows))
