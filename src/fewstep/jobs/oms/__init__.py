"""One More Step (arXiv 2311.15744): a small network makes the first state where a model never saw pure noise."""

from fewstep.jobs.oms.plan import with_one_more_step
from fewstep.jobs.oms.step import OneMoreStep

__all__ = ["OneMoreStep", "with_one_more_step"]
