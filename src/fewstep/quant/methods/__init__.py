"""Post-training methods: how the codes of a layer are chosen, beyond what its scheme says is stored."""

from fewstep.quant.methods.base import METHODS, RoundingMethod, fitting, method_of, store

__all__ = ["METHODS", "RoundingMethod", "fitting", "method_of", "store"]
