"""Tuning of a few-step pipeline by rewards or votes, with an alarm where the reward is hacked."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.align.job import run
    from fewstep.jobs.align.recipe import AlignRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"AlignRecipe": "recipe", "run": "job"})

__all__ = ["AlignRecipe", "run"]
