"""SVDQuant as a method: smoothing where there is calibration, a float branch, round to nearest."""

from __future__ import annotations

from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method


@rounding_method(argument("a rank", 1, shown="32"), smooth=True)
def svdquant(rank: int = 32) -> RoundingMethod:
    """`svdquant` or `svdquant:RANK` (default 32)."""
    return RoundingMethod(rank=rank)
