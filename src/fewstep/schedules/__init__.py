"""Schedule search: times, solvers per step, skipped layers and learned numbers, for a fixed number of evaluations."""

from fewstep.schedules.candidate import Candidate, Model
from fewstep.schedules.descent import Descent, descend
from fewstep.schedules.evolution import autodiffusion, random_search, s3
from fewstep.schedules.gits import gits
from fewstep.schedules.learnable import Learnable, learn_grid, learn_intermediate, learn_scales
from fewstep.schedules.methods import BY_GRADIENT, METHODS, Found, Task, method
from fewstep.schedules.objectives import DistributionMatch, TeacherMatch
from fewstep.schedules.pool import Entry, Pool
from fewstep.schedules.space import Space
from fewstep.schedules.trajectory import Trajectory

__all__ = [
    "BY_GRADIENT", "METHODS", "Candidate", "Descent", "DistributionMatch", "Entry", "Found", "Learnable", "Model",
    "Pool", "Space", "Task", "TeacherMatch", "Trajectory", "autodiffusion", "descend", "gits", "learn_grid",
    "learn_intermediate", "learn_scales", "method", "random_search", "s3",
]  # fmt: skip
