"""The aesthetic predictor of LAION: a stack of linear layers on the image embedding of a CLIP."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.clip import Clip, read_preprocessing
from fewstep.errors import FewstepError
from fewstep.files import read_tensors
from fewstep.rewards.base import REWARDS, Reward, RewardFunction, facts_of_clip

LAION = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"
"""The published head (improved-aesthetic-predictor) with its CLIP ViT-L/14, as safetensors."""
_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")
Head = list[tuple[Tensor, Tensor]]
"""Weight (out, in) and bias (out,) of each layer in order; dropout between them does nothing here."""


def rating(clip: Clip, head: Head, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Rating (B,) of images (B, 3, H, W) in [0, 1], about 1 to 10; prompts are only counted.

    The embedding has unit norm, as the head was trained; nothing bends between its layers.
    """
    x = clip.image_features(images)
    for weight, bias in head:
        x = F.linear(x, weight, bias)
    return x.squeeze(1)


@REWARDS.register("aesthetic")
def aesthetic(argument: str) -> Reward:
    """`aesthetic`, or `aesthetic:FOLDER_OR_ID` of a `CLIPVisionModelWithProjection` with `layers.N` beside it.

    Raises:
        FewstepError: it cannot be loaded, or holds no such layers.
    """
    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import cached_file

    source = argument or LAION
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        tensors = read_tensors(str(cached_file(source, "model.safetensors")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FewstepError(
            f"cannot load an aesthetic predictor: {str(error).splitlines()[0]}",
            value=source,
            hint="Give a folder or hub id with config.json and model.safetensors of a CLIP vision model and its head.",
        ) from error
    head = head_of(tensors, source)
    clip = Clip(
        model.eval().requires_grad_(False), None, read_preprocessing(source, model.config.image_size)
    )  # of pictures alone: no tokenizer
    name = f"aesthetic-{Path(argument).name}" if argument else "aesthetic"
    facts, function = facts_of_clip(clip, source), partial(rating, clip, head)
    return RewardFunction(name, function, differentiable=True, facts=facts, networks=(clip.model,))


def head_of(tensors: dict[str, Tensor], source: str) -> Head:
    """The linear layers among the tensors of a file, by their numbers.

    Raises:
        FewstepError: there are none, or one does not lead to the next and to a single number.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor.float()
    head = [(found[k]["weight"], found[k]["bias"]) for k in sorted(found) if len(found[k]) == 2]
    widths = [weight.shape for weight, _ in head]
    fits = all(after[1] == before[0] for before, after in itertools.pairwise(widths))
    if not head or not fits or widths[-1][0] != 1:
        hint = "Its file must hold layers.0.weight, layers.0.bias, ... that end in one number."
        raise FewstepError("no head of an aesthetic predictor here", value=source, hint=hint)
    return head
