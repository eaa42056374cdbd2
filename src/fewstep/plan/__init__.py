"""The sampler as data: rows of coefficients, their files, and their two-way bridge to diffusers schedulers."""

from fewstep.plan.combination import Coefficient, Combination, output, state
from fewstep.plan.plan import Identity, Plan, Row, data_of, noise_of

__all__ = ["Coefficient", "Combination", "Identity", "Plan", "Row", "data_of", "noise_of", "output", "state"]
