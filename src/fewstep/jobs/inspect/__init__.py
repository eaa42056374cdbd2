"""`fewstep inspect`: what a pipeline's network and plan do, as a report."""

from fewstep.jobs.inspect.job import InspectSettings, inspect

__all__ = ["InspectSettings", "inspect"]
