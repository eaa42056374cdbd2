"""The scheduler that saved pipelines name in `model_index.json`.

diffusers opens foreign components only from modules that are already imported, and its error names the module to
import. Importing this one is enough for the whole folder: it also makes the low-bit format of the backbone known.
"""

from __future__ import annotations

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fewstep.plan import scheduler as base
from fewstep.quant import register

register()


class PlanScheduler(base.PlanScheduler):
    """`fewstep.plan.scheduler.PlanScheduler` as the component of a pipeline."""


__all__ = ["PlanScheduler", "SchedulerMixin"]  # diffusers looks up SchedulerMixin here to learn how to load
