"""`fewstep diagnose`: what a pipeline's network and plan do, as a report."""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.jobs.inspect.job import inspect
    from fewstep.jobs.inspect.settings import InspectSettings
else:  # the command line asks the settings for its options, without what the job imports
    __getattr__ = attributes(__name__, {"InspectSettings": "settings", "inspect": "job"})

__all__ = ["InspectSettings", "inspect"]
