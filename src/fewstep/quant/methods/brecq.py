"""BRECQ as a method: round to nearest, then blocks are reconstructed by whoever can run the model."""

from __future__ import annotations

from fewstep.quant.methods.base import RoundingMethod, argument, rounding_method


@rounding_method(argument("a number of steps", 1, shown="200"))
def brecq(steps: int = 200) -> RoundingMethod:
    """`brecq` or `brecq:STEPS` of each block (default 200); see `fewstep.quant.reconstruct`."""
    return RoundingMethod(reconstruct=steps)
