"""Training of the small text-to-image pipeline: `fewstep.jobs.zoo.run(stage, overrides, out)`."""

from __future__ import annotations

from fewstep.jobs.zoo.run import STAGES, run

__all__ = ["STAGES", "run"]
