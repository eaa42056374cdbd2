"""Post-training quantization of whole pipelines, with a scheme obeyed or bits chosen (MixDQ, arXiv 2405.17873)."""

from fewstep.jobs.quantize.job import run
from fewstep.jobs.quantize.recipe import QuantizeRecipe

__all__ = ["QuantizeRecipe", "run"]
