"""Moving digits: two real digits on a canvas, bouncing at one of three speeds. The prompt names digits and speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest

SIDE, DIGIT = 16, 8
SPEEDS = {"slow": 0.35, "medium": 0.9, "fast": 1.8}
"""Pixels per frame of each digit."""
COMPRESSION = 2
"""Frames in a latent frame: they are its channels."""


@dataclass(frozen=True, eq=False)
class DigitPictures:
    """Scikit-learn's digits (N, 8, 8) in [0, 1] with their classes (N,)."""

    pictures: Tensor
    labels: Tensor


@lru_cache(maxsize=2)
def digit_pictures(held_out: bool = False) -> DigitPictures:
    """Four fifths of scikit-learn's 1797 digits for training, or the last fifth."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    first = len(raw.images) * 4 // 5
    part = slice(first, None) if held_out else slice(0, first)
    return DigitPictures(torch.tensor(raw.images[part] / 16, dtype=torch.float32), torch.tensor(raw.target[part]))


def moving_digits(
    count: int, frames: int, generator: torch.Generator, *, held_out: bool = False
) -> tuple[Tensor, Tensor]:
    """Clips (B, frames, 16, 16) in [-1, 1], and prompts (B, 3): the two digits, the smaller first, and the speed.

    Each digit starts anywhere, moves in any direction at the speed of the prompt, and is reflected at the borders.
    """
    data = digit_pictures(held_out)
    rows = torch.randint(len(data.labels), (count, 2), generator=generator)
    speed = torch.randint(len(SPEEDS), (count,), generator=generator)
    pixels = torch.tensor(list(SPEEDS.values()))[speed]
    room = SIDE - DIGIT
    start = torch.rand(count, 2, 2, generator=generator) * 2 * room  # (B, digit, axis), unfolded: twice the room
    angle = torch.rand(count, 2, generator=generator) * 2 * math.pi
    step = pixels[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    place = start[:, None] + torch.arange(frames)[None, :, None, None] * step[:, None]
    place = room - (place.remainder(2 * room) - room).abs()
    clips = _drawn(data.pictures[rows], place)
    return 2 * clips - 1, torch.cat([data.labels[rows].sort(1).values, speed[:, None]], 1)


def _drawn(digits: Tensor, place: Tensor) -> Tensor:
    """Digits (B, 2, 8, 8) at places (B, F, 2, axis) of their corner, between pixels by linear interpolation."""
    pixel, own = torch.arange(SIDE)[:, None], torch.arange(DIGIT)[None]
    weights = (1 - (pixel - own - place[..., None, None]).abs()).clamp(min=0)  # (B, F, 2, axis, 16, 8)
    drawn = torch.einsum("bfdyi,bdij,bfdxj->bfyx", weights[:, :, :, 0], digits, weights[:, :, :, 1])
    return drawn.clamp(max=1)


def encoded(clips: Tensor) -> Tensor:
    """Clips (B, frames, 16, 16) to latent frames (B, frames / 2, 2, 16, 16).

    Raises:
        FewstepError: a number of frames that the compression does not divide.
    """
    if clips.shape[1] % COMPRESSION:
        hint = f"Use a multiple of {COMPRESSION}."
        raise FewstepError("frames must fill whole latent frames", value=clips.shape[1], hint=hint)
    return clips.unflatten(1, (-1, COMPRESSION))


def decoded(latents: Tensor) -> Tensor:
    """Latent frames (B, F, 2, 16, 16) to clips (B, 2 F, 16, 16)."""
    return latents.flatten(1, 2)


def prompt_of(text: str) -> Tensor:
    """The prompt (1, 3) of words such as "3 7 fast".

    Raises:
        FewstepError: other words.
    """
    words = text.split()
    if len(words) != 3 or not all(w.isdecimal() and len(w) == 1 for w in words[:2]):
        raise FewstepError("a prompt is two digits and a speed", value=text, hint='For example "3 7 fast".')
    if words[2] not in SPEEDS:
        raise FewstepError("unknown speed", value=words[2], hint=nearest(words[2], SPEEDS))
    return torch.tensor([[*sorted(map(int, words[:2])), list(SPEEDS).index(words[2])]])


def text_of(prompt: Tensor) -> str:
    """The words of a prompt (3,)."""
    first, second, speed = prompt.tolist()
    return f"{first} {second} {list(SPEEDS)[speed]}"
