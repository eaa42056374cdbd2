"""Guidance without training: rules that correct a clean prediction, scales per row, resampling, optimisation."""

from fewstep.guidance.correction import Clean, Guidance, corrected
from fewstep.guidance.gradients import classifier, reward_gradient, target
from fewstep.guidance.resampling import Particles, steer
from fewstep.guidance.scales import cfg_plus_plus, guidance_interval, guidance_scale
from fewstep.guidance.surrogate import LinearSurrogate, pseudo_labels, regret, ridge

__all__ = [
    "Clean",
    "Guidance",
    "LinearSurrogate",
    "Particles",
    "cfg_plus_plus",
    "classifier",
    "corrected",
    "guidance_interval",
    "guidance_scale",
    "pseudo_labels",
    "regret",
    "reward_gradient",
    "ridge",
    "steer",
    "target",
]
