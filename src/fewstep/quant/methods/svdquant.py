"""SVDQuant as a method: smoothing where there is calibration, a float branch, round to nearest."""

from __future__ import annotations

from fewstep.errors import FewstepError
from fewstep.quant.methods.base import METHODS, RoundingMethod


@METHODS.register("svdquant")
def make(argument: str) -> RoundingMethod:
    """`svdquant` or `svdquant:RANK` (default 32)."""
    if argument and not (argument.isdigit() and int(argument) > 0):
        raise FewstepError("svdquant takes a rank", value=argument, hint="Write svdquant:32.")
    return RoundingMethod(smooth=True, rank=int(argument or 32))
