"""Round to nearest: no data, seconds."""

from __future__ import annotations

from fewstep.quant.methods.base import METHODS, RoundingMethod
from fewstep.registry import no_argument


@METHODS.register("rtn")
def make(argument: str) -> RoundingMethod:
    """Each weight to the nearest value of its group's grid."""
    no_argument("rtn", argument)
    return RoundingMethod()
