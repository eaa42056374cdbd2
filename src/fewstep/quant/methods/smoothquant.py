"""SmoothQuant as a method: smoothing, then round to nearest."""

from __future__ import annotations

from fewstep.errors import FewstepError
from fewstep.quant.methods.base import METHODS, RoundingMethod


@METHODS.register("smoothquant")
def make(argument: str) -> RoundingMethod:
    """`smoothquant` or `smoothquant:ALPHA` with alpha from 0 to 1 (default 0.5; ViDiT-Q uses less)."""
    return RoundingMethod(strength=share("smoothquant", argument, 0.5), smooth=True, calibrated=True)


def share(what: str, argument: str, default: float) -> float:
    """A number from 0 to 1.

    Raises:
        FewstepError: the argument is none.
    """
    try:
        value = float(argument) if argument else default
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise FewstepError(f"{what} takes a number from 0 to 1", value=argument, hint=f"Write {what}:0.5.")
    return value
