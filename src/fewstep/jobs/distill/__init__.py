"""Distillation of a pipeline by any method of `fewstep.distillation.presets`."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.distill.job import run
    from fewstep.jobs.distill.recipe import DistillRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"DistillRecipe": "recipe", "run": "job"})

__all__ = ["DistillRecipe", "run"]
