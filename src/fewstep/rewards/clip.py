"""Alignment of image and prompt: the cosine of a CLIP, or of a preference model with CLIP's form (PickScore)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from fewstep.clip import Clip, load_clip
from fewstep.registry import need_argument
from fewstep.rewards.base import REWARDS, Reward, RewardFunction


def cosine(clip: Clip, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine (B,) of images (B, 3, H, W) in [0, 1] and prompts, on the device of the CLIP.

    In [-1, 1], neither clamped at zero nor scaled by the temperature (arXiv 2104.08718 does both).
    """
    image = clip.image_features(images)
    return (image * clip.text_features(prompts)).sum(-1)


@REWARDS.register("clip")
def clip_alignment(argument: str) -> Reward:
    """`clip:FOLDER_OR_ID`; the folder must hold a tokenizer too."""
    clip = load_clip(need_argument("clip", argument, "FOLDER_OR_ID"))
    return RewardFunction(f"clip-{Path(argument).name}", partial(cosine, clip), differentiable=True)
