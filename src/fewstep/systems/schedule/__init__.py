"""Schedule search on a pipeline: fewer steps without training, measured on held-out seeds and conditions."""

from fewstep.systems.schedule.job import run
from fewstep.systems.schedule.recipe import ScheduleRecipe

__all__ = ["ScheduleRecipe", "run"]
