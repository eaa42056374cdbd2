"""Q-Sched (arXiv 2509.01624): keep the low-bit network, rescale the two inputs of every sampler step."""

from fewstep.jobs.q_sched.job import run
from fewstep.jobs.q_sched.recipe import QSchedRecipe

__all__ = ["QSchedRecipe", "run"]
