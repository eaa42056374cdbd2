"""Choose steps, solver, times, bits and Q-Sched under budgets of bytes and milliseconds: `fewstep auto`."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.auto.job import run
    from fewstep.jobs.auto.recipe import AutoRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"AutoRecipe": "recipe", "run": "job"})

__all__ = ["AutoRecipe", "run"]
