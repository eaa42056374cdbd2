"""Small picture helpers that several stages share."""

from __future__ import annotations

import re

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


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
