"""Search: functions that improve a plan against an objective."""

from fewstep.schedules.tuning.family import Family
from fewstep.schedules.tuning.function import FunctionObjective, PlanFunction
from fewstep.schedules.tuning.jaq import JAQ, items_of, standardising_cost
from fewstep.schedules.tuning.least_squares import least_squares
from fewstep.schedules.tuning.outcome import CandidateScore, SearchOutcome
from fewstep.schedules.tuning.problem import Objective, Problem
from fewstep.schedules.tuning.searchers import LEAST_BUDGET, SEARCHERS, searcher

__all__ = [
    "JAQ",
    "LEAST_BUDGET",
    "SEARCHERS",
    "CandidateScore",
    "Family",
    "FunctionObjective",
    "Objective",
    "PlanFunction",
    "Problem",
    "SearchOutcome",
    "items_of",
    "least_squares",
    "searcher",
    "standardising_cost",
]  # fmt: skip
