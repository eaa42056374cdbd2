"""Score distillation: directions, weights and noise levels that make DMD, SiD, SIM, TDM and their relatives."""

from fewstep.distill.score.branch import Branch, Scheduled
from fewstep.distill.score.critic import Denoising
from fewstep.distill.score.directions import ElementHuber, Guidance, Huber, Identity, Match, Power, Sum, squared
from fewstep.distill.score.regularisers import MeanVariance, Pairs, Raise
from fewstep.distill.score.view import direct, onward
from fewstep.distill.score.weights import PerError, Ratio, Scales, Tilt

__all__ = [
    "Branch",
    "Denoising",
    "ElementHuber",
    "Guidance",
    "Huber",
    "Identity",
    "Match",
    "MeanVariance",
    "Pairs",
    "PerError",
    "Power",
    "Raise",
    "Ratio",
    "Scales",
    "Scheduled",
    "Sum",
    "Tilt",
    "direct",
    "onward",
    "squared",
]
