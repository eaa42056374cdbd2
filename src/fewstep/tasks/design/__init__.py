"""Sequences of high score from few measurements: a masked model, four ways to direct it, two searches beside it."""

from fewstep.tasks.design.model import SequenceModel, SequenceNetwork, fit_model
from fewstep.tasks.design.search import Proposals, best_so_far, design, propose
from fewstep.tasks.design.steering import steer_tokens
from fewstep.tasks.design.ways import WAYS, DesignSettings, tuned_policy

__all__ = [
    "WAYS",
    "DesignSettings",
    "Proposals",
    "SequenceModel",
    "SequenceNetwork",
    "best_so_far",
    "design",
    "fit_model",
    "propose",
    "steer_tokens",
    "tuned_policy",
]
