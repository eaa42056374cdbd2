"""Schedule search on a pipeline: fewer steps without training, measured on held-out seeds and conditions."""

from fewstep.jobs.search.job import run
from fewstep.jobs.search.recipe import ScheduleRecipe

__all__ = ["ScheduleRecipe", "run"]
