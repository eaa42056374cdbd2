"""Recipes: YAML files that name everything a run needs. Unknown keys are errors that suggest the near one."""

from fewstep.recipes.base import Recipe, RecipePart
from fewstep.recipes.kinds import register
from fewstep.recipes.loader import load, resolve, shipped_recipes

__all__ = ["Recipe", "RecipePart", "load", "register", "resolve", "shipped_recipes"]
