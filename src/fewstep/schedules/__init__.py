"""Schedule search: times, solvers per step, skipped layers and learned numbers, for a fixed number of evaluations."""

from fewstep.schedules.candidate import Candidate, ModelInfo
from fewstep.schedules.descent import descend
from fewstep.schedules.evolution import autodiffusion, random_search, s3
from fewstep.schedules.gits import gits
from fewstep.schedules.learnable import LearnableSchedule, learn_grid, learn_intermediate, learn_scales
from fewstep.schedules.methods import BY_GRADIENT, METHODS, least_budget, search_method
from fewstep.schedules.objectives import DistributionMatch, TeacherMatch
from fewstep.schedules.pool import EvaluationPool, PoolEntry
from fewstep.schedules.space import ScheduleSpace
from fewstep.schedules.task import SearchResult, SearchTask
from fewstep.schedules.trajectory import Trajectory

__all__ = [
    "BY_GRADIENT",
    "METHODS",
    "Candidate",
    "DistributionMatch",
    "EvaluationPool",
    "LearnableSchedule",
    "ModelInfo",
    "PoolEntry",
    "ScheduleSpace",
    "SearchResult",
    "SearchTask",
    "TeacherMatch",
    "Trajectory",
    "autodiffusion",
    "descend",
    "gits",
    "learn_grid",
    "learn_intermediate",
    "learn_scales",
    "least_budget",
    "random_search",
    "s3",
    "search_method",
]  # fmt: skip
