"""BRECQ as a method: round to nearest, then blocks are reconstructed by whoever can run the model."""

from __future__ import annotations

from fewstep.errors import FewstepError
from fewstep.quant.methods.base import METHODS, RoundingMethod


@METHODS.register("brecq")
def make(argument: str) -> RoundingMethod:
    """`brecq` or `brecq:STEPS` of each block (default 200); see `fewstep.quant.reconstruct`."""
    if argument and not (argument.isdigit() and int(argument) > 0):
        raise FewstepError("brecq takes a number of steps", value=argument, hint="Write brecq:200.")
    return RoundingMethod(reconstruct=int(argument or 200))
