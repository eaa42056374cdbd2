"""Q-Sched (arXiv 2509.01624): keep the low-bit network, rescale the two inputs of every sampler step."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.q_sched.job import run
    from fewstep.jobs.q_sched.recipe import QSchedRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"QSchedRecipe": "recipe", "run": "job"})

__all__ = ["QSchedRecipe", "run"]
