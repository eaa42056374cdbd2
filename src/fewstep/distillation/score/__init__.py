"""Score distillation: directions, weights and noise levels that make DMD, SiD, SIM, TDM and their relatives."""

from fewstep.distillation.score.branch import ScheduledTerm, ScoreDistillation
from fewstep.distillation.score.critic import DenoisingLoss
from fewstep.distillation.score.directions import (
    DistributionMatching,
    ElementwiseHuberGradient,
    GuidanceDifference,
    HuberGradient,
    PowerGradient,
    ScoreIdentity,
    WeightedSum,
    squared,
)
from fewstep.distillation.score.regularisers import MeanVariancePenalty, PairedRegression, RewardTerm
from fewstep.distillation.score.view import direct, onward
from fewstep.distillation.score.weights import DensityRatioWeight, ErrorNormalizer, RewardWeight, ScaleWeight

__all__ = [
    "DenoisingLoss",
    "DensityRatioWeight",
    "DistributionMatching",
    "ElementwiseHuberGradient",
    "ErrorNormalizer",
    "GuidanceDifference",
    "HuberGradient",
    "MeanVariancePenalty",
    "PairedRegression",
    "PowerGradient",
    "RewardTerm",
    "RewardWeight",
    "ScaleWeight",
    "ScheduledTerm",
    "ScoreDistillation",
    "ScoreIdentity",
    "WeightedSum",
    "direct",
    "onward",
    "squared",
]
