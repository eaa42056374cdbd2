"""Score distillation: directions, weights and noise levels that make DMD, SiD, SIM, TDM and their relatives."""

from fewstep.distillation.score.branch import Branch, Scheduled
from fewstep.distillation.score.critic import Denoising
from fewstep.distillation.score.directions import ElementHuber, Guidance, Huber, Identity, Match, Power, Sum, squared
from fewstep.distillation.score.regularisers import MeanVariance, Pairs, Raise
from fewstep.distillation.score.view import direct, onward
from fewstep.distillation.score.weights import PerError, Ratio, Scales, Tilt

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
