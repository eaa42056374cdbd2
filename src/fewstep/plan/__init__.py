"""The sampler as data: rows of coefficients, and their files."""

from fewstep.plan.combination import Coefficient, Combination, output, state
from fewstep.plan.history import RunState
from fewstep.plan.identity import Identity
from fewstep.plan.nested import Index, NestedPlan, PlanEntry, nested_plan
from fewstep.plan.plan import Plan
from fewstep.plan.row import Row, data_of, noise_of

__all__ = [
    "Coefficient",
    "Combination",
    "Identity",
    "Index",
    "NestedPlan",
    "Plan",
    "PlanEntry",
    "Row",
    "RunState",
    "data_of",
    "nested_plan",
    "noise_of",
    "output",
    "state",
]
