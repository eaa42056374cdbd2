"""Small picture helpers that several stages share."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

# Words whose picture means something else in the mirror; text, digits and clocks would turn unreadable.
_SIDED = re.compile(
    r"\b(left|right|left\w+|right\w+|lower|upper|letter|digit|number|keycap|clock|oclock|flag|facing|squared|circled|"
    r"arrow|latin|cjk|ideograph\w*|katakana|button|mark|runner|abc|abcd|input|symbol|calendar)\b"
)


def flippable(caption: str) -> bool:
    """Whether the mirrored picture still shows the caption."""
    return _SIDED.search(caption.lower()) is None


def flipped(pictures: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Mirror the pictures (B, C, H, W) where `flip` (B,) is true."""
    return torch.where(flip[:, None, None, None], pictures.flip(-1), pictures)


class Mirror:
    """Mirrors half of those pictures whose caption allows it."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.may_flip = torch.tensor([flippable(caption) for caption in captions])

    def __call__(self, pictures: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The pictures (B, C, H, W), those of the captions numbered `chosen` (B,)."""
        return flipped(pictures, self.may_flip[chosen] & (torch.rand(len(chosen), generator=generator) < 0.5))


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
