"""Training of the models that ship with the package: `fewstep train STAGE`."""

from __future__ import annotations

from fewstep.jobs.zoo.run import STAGES, run

__all__ = ["STAGES", "run"]
