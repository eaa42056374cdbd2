"""Alignment of image and prompt: the cosine of a CLIP, or of a preference model with CLIP's form (PickScore)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from fewstep.clip import Clip, load_clip
from fewstep.rewards.base import REWARDS, Reward, RewardFunction, facts_of_clip

OPENAI = "openai/clip-vit-large-patch14"
PICKSCORE, PICKSCORE_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The published weights, and where their tokenizer and image settings lie."""


def cosine(clip: Clip, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine (B,) of images (B, 3, H, W) in [0, 1] and prompts, on the device of the CLIP.

    In [-1, 1], neither clamped at zero nor scaled by the temperature (arXiv 2104.08718 does both).
    """
    image = clip.image_features(images)
    return (image * clip.text_features(prompts)).sum(-1)


@REWARDS.register("clip")
def clip_alignment(argument: str) -> Reward:
    """`clip` of OpenAI (ViT-L/14), or `clip:FOLDER_OR_ID`; the folder must hold a tokenizer too."""
    source = argument or OPENAI
    clip = load_clip(source)
    facts = facts_of_clip(clip, source)
    return RewardFunction(
        f"clip-{Path(source).name}", partial(cosine, clip), differentiable=True, facts=facts, networks=(clip.model,)
    )


def preference(clip: Clip, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The cosine (B,) times the temperature that the model has learned, as PickScore's authors print it: about 20."""
    return clip.model.logit_scale.exp() * cosine(clip, images, prompts)


@REWARDS.register("pickscore")
def pickscore(argument: str) -> Reward:
    """`pickscore` (arXiv 2305.01569), or `pickscore:FOLDER_OR_ID` of another model of CLIP's form and its tokenizer."""
    source = argument or PICKSCORE
    clip = load_clip(source, None if argument else PICKSCORE_PROCESSOR)
    name = f"pickscore-{Path(argument).name}" if argument else "pickscore"
    facts = {**facts_of_clip(clip, source), "scale": float(clip.model.logit_scale.exp())}
    return RewardFunction(name, partial(preference, clip), differentiable=True, facts=facts, networks=(clip.model,))
