"""Distillation of a pipeline by any method of `fewstep.distillation.presets`."""

from fewstep.jobs.distill.job import run
from fewstep.jobs.distill.recipe import DistillRecipe

__all__ = ["DistillRecipe", "run"]
