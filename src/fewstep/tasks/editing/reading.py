"""What a shipped emoji model is asked for: an instruction on a picture as the caption of the result."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.data.emoji import emoji_prompts, load_emoji
from fewstep.data.instructions import edited_caption, is_instruction
from fewstep.errors import FewstepError, nearest
from fewstep.pipelines.protocol import Pipeline
from fewstep.zoo import shipped

SIDE, FAR = 32, 0.12
"""Pictures are compared at this side; beyond this root mean square difference, of a range of 1, they are others."""


def prompt_of(pipe: Pipeline, picture: Tensor, instruction: str) -> str:
    """What the edited picture shows, in words that the pipeline draws from.

    A pipeline of captions is not told what to do but what to show. Of the shipped emoji models the captions are known:
    the picture is read (the nearest of them), and an instruction such as "make the skin tone dark"
    changes its caption. Any other text, and any text for another pipeline, is the prompt itself.

    Args:
        pipe: a text-to-image pipeline.
        picture: (3, H, W), in [0, 1], on white.
        instruction: what to do, or what to show.

    Raises:
        FewstepError: nothing is asked for; for an emoji model a word that no caption has, or an instruction that names
            nothing in the picture.
    """
    if not instruction.strip():
        raise FewstepError("nothing is asked for", value=instruction, hint="Say what the picture is to show.")
    if not draws_emoji(pipe):
        return instruction
    if not is_instruction(instruction):
        _check_words(instruction)
        return instruction
    caption = caption_of(picture)
    after = edited_caption(caption, instruction, set(emoji_prompts("all")))
    if after is None:
        what = f"the instruction changes nothing in this picture, which reads as {caption!r}"
        raise FewstepError(what, value=instruction, hint="Say what the result shows instead: 'woman with red hair'.")
    return after


def draws_emoji(pipe: Pipeline) -> bool:
    """Whether this is a shipped emoji pipeline."""
    place = str(getattr(pipe, "name_or_path", None) or "")
    return bool(place) and Path(place).resolve().parent == shipped("emoji-teacher").resolve().parent


def caption_of(picture: Tensor) -> str:
    """The caption of the shipped emoji that a picture (1 or 3, H, W) in [0, 1] shows, at any size.

    By the nearest pixels: of 250 emoji `emoji-clip` names 38 % rightly among all captions, too few to act on.

    Raises:
        FewstepError: no shipped emoji is near.
    """
    captions, known = _known_pictures()
    small = F.interpolate(picture.expand(1, 3, *picture.shape[1:]), (SIDE, SIDE), mode="bilinear", antialias=True)
    away, place = (known - small).square().flatten(1).mean(1).sqrt().min(0)
    if float(away) > FAR:
        hint = "Say what the result shows instead: 'woman with red hair'."
        raise FewstepError("this picture is like no emoji that the model knows", value=f"{float(away):.2f}", hint=hint)
    return captions[int(place)]


@functools.lru_cache(maxsize=1)
def _known_pictures() -> tuple[list[str], Tensor]:
    data = load_emoji("all")
    small = [
        F.interpolate(part.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        for part in data.images.split(256)
    ]
    return data.captions, torch.cat(small)


def _check_words(text: str) -> None:
    known = {word for caption in emoji_prompts("all") for word in _words(caption)}
    for word in _words(text):
        if word not in known:
            close = nearest(word, known)
            hint = (
                close if close.startswith("Did") else "Captions are names of emoji: 'cat face', 'woman with red hair'."
            )
            raise FewstepError("no caption of an emoji has this word", value=word, hint=hint)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())
