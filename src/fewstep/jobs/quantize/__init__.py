"""Post-training quantization of whole pipelines, with a scheme obeyed or bits chosen (MixDQ, arXiv 2405.17873)."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.quantize.job import run
    from fewstep.jobs.quantize.recipe import QuantizeRecipe
else:  # the command line asks the recipe for its options, without what the job imports
    __getattr__ = attributes(__name__, {"QuantizeRecipe": "recipe", "run": "job"})

__all__ = ["QuantizeRecipe", "run"]
