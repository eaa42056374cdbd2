"""Distillation of a pipeline by any method of `fewstep.distill.presets`."""

from fewstep.systems.distill.job import run
from fewstep.systems.distill.recipe import DistillRecipe

__all__ = ["DistillRecipe", "run"]
