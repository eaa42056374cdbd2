"""Schedule search: times, solvers per step, skipped layers and learned numbers, for a fixed number of evaluations."""

from fewstep.search.schedule.candidate import Candidate, Model
from fewstep.search.schedule.descent import Descent, descend
from fewstep.search.schedule.evolution import autodiffusion, random_search, s3
from fewstep.search.schedule.gits import gits
from fewstep.search.schedule.learnable import Learnable, learn_grid, learn_intermediate, learn_scales
from fewstep.search.schedule.methods import BY_GRADIENT, METHODS, Found, Task, method
from fewstep.search.schedule.objectives import DistributionMatch, TeacherMatch
from fewstep.search.schedule.pool import Entry, Pool
from fewstep.search.schedule.space import Space
from fewstep.search.schedule.trajectory import Trajectory

__all__ = [
    "BY_GRADIENT", "METHODS", "Candidate", "Descent", "DistributionMatch", "Entry", "Found", "Learnable", "Model",
    "Pool", "Space", "Task", "TeacherMatch", "Trajectory", "autodiffusion", "descend", "gits", "learn_grid",
    "learn_intermediate", "learn_scales", "method", "random_search", "s3",
]  # fmt: skip
