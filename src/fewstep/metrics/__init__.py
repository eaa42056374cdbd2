"""Metrics: what is reported, with intervals and beside the null."""

from fewstep.metrics.evaluate import check_sizes, evaluate
from fewstep.metrics.features import FEATURES, FeatureNet, load_features
from fewstep.metrics.intervals import Interval

__all__ = ["FEATURES", "FeatureNet", "Interval", "check_sizes", "evaluate", "load_features"]
