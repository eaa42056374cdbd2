"""Read a plan out of a diffusers scheduler: its rows, its noise levels, and what its network's outputs mean."""

from fewstep.pipelines.probing.meaning import level, prediction_of
from fewstep.pipelines.probing.probe import plan_of_scheduler

__all__ = ["level", "plan_of_scheduler", "prediction_of"]
