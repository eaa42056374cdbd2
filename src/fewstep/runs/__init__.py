"""A run is one directory: resolved recipe, log, finished units and their artifacts. Killed, it goes on where it was."""

from fewstep.runs.environment import environment
from fewstep.runs.run import Run

__all__ = ["Run", "environment"]
