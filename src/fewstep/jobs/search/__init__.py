"""Schedule search on a pipeline: fewer steps without training, measured on held-out seeds and conditions."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.search.job import run
    from fewstep.jobs.search.recipe import ScheduleRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"ScheduleRecipe": "recipe", "run": "job"})

__all__ = ["ScheduleRecipe", "run"]
