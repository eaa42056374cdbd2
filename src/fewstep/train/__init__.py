"""Training of the small text-to-image pipeline: `fewstep.train.run(stage, overrides, out)`."""

from __future__ import annotations

from fewstep.train.run import STAGES, run

__all__ = ["STAGES", "run"]
