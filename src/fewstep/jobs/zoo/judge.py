"""Stage `judge`: a second CLIP, independent of the reward, that alone judges alignment."""

from __future__ import annotations

from typing import Literal

from fewstep.jobs.zoo import clip
from fewstep.train.stage import Count, Stage


class JudgeConfig(clip.ClipConfig):
    """Other seed, width, depth and patch than the reward; it knows the held-out combinations too."""

    seed: int = 23
    split: Literal["train", "all"] = "all"
    width: Count = 112
    layers: Count = 4
    text_width: Count = 80
    text_layers: Count = 1


def build(config: JudgeConfig) -> Stage:
    """The same loss as stage `clip`."""
    return clip.build(config)
