"""SmoothQuant as a method: smoothing, then round to nearest."""

from __future__ import annotations

from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method


@rounding_method(argument("a number from 0 to 1", 0, 1, shown="0.5"), smooth=True, calibrated=True)
def smoothquant(alpha: float = 0.5) -> RoundingMethod:
    """`smoothquant` or `smoothquant:ALPHA` with alpha from 0 to 1 (default 0.5; ViDiT-Q uses less)."""
    return RoundingMethod(strength=alpha)
