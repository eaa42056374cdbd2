"""Round to nearest: no data, seconds."""

from __future__ import annotations

from fewstep.quant.methods.base import RoundingMethod, rounding_method


@rounding_method()
def rtn() -> RoundingMethod:
    """Each weight to the nearest value of its group's grid."""
    return RoundingMethod()
