"""Search: functions that improve a plan against an objective."""

from fewstep.search.family import Family
from fewstep.search.jaq import JAQ
from fewstep.search.least_squares import least_squares
from fewstep.search.problem import Evaluation, Objective, Outcome, Problem
from fewstep.search.searchers import SEARCHERS, searcher

__all__ = [
    "JAQ", "SEARCHERS", "Evaluation", "Family", "Objective", "Outcome", "Problem", "least_squares", "searcher",
]  # fmt: skip
