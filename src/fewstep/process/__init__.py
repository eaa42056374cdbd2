"""How data becomes noise, and the number by which a network is given the time."""

from fewstep.process.base import Process, lift
from fewstep.process.continuous import VE, Cosine, General, RectifiedFlow, ResidualShift, VPContinuous
from fewstep.process.discrete import VPDiscrete, betas
from fewstep.process.time_conditioning import TIME_CONDITIONINGS, TimeConditioning

__all__ = [
    "TIME_CONDITIONINGS",
    "VE",
    "Cosine",
    "General",
    "Process",
    "RectifiedFlow",
    "ResidualShift",
    "TimeConditioning",
    "VPContinuous",
    "VPDiscrete",
    "betas",
    "lift",
]
