"""Alignment of image and prompt: the cosine of a CLIP, or of a preference model with CLIP's form (PickScore)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewstep.clip import Clip, load_clip
from fewstep.registry import need_argument
from fewstep.rewards.base import REWARDS, check_images


@dataclass(frozen=True)
class ClipAlignment:
    """Raw cosine in [-1, 1], neither clamped at zero nor scaled by the temperature (arXiv 2104.08718 does both)."""

    clip: Clip
    name: str = "clip"
    differentiable: bool = True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine (B,) of images (B, 3, H, W) in [0, 1] and prompts, on the device of the CLIP."""
        image = self.clip.image_features(check_images(images, prompts))
        return (image * self.clip.text_features(prompts)).sum(-1)


@REWARDS.register("clip")
def clip_alignment(argument: str) -> ClipAlignment:
    """`clip:FOLDER_OR_ID`; the folder must hold a tokenizer too."""
    clip = load_clip(need_argument("clip", argument, "FOLDER_OR_ID"))
    return ClipAlignment(clip, f"clip-{Path(argument).name}")
