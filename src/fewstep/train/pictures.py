"""Small picture helpers that several stages share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

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


def mirror_of(captions: Sequence[str]) -> Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]:
    """A function that mirrors half of those pictures whose caption allows it.

    Args:
        captions: of all pictures.

    Returns:
        (pictures (B, C, H, W), their numbers (B,), generator) -> the pictures.
    """
    may_flip = torch.tensor([flippable(caption) for caption in captions])

    def mirror(pictures: torch.Tensor, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return flipped(pictures, may_flip[chosen] & (torch.rand(len(chosen), generator=generator) < 0.5))

    return mirror


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
