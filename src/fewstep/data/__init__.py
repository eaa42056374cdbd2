"""Captioned pictures: the shipped emoji set and loaders for folders and npz files."""

from __future__ import annotations

from fewstep.data.captioned import CaptionedImages
from fewstep.data.emoji import emoji_prompts, load_emoji
from fewstep.data.mnist import load_mnist
from fewstep.data.sources import load

__all__ = ["CaptionedImages", "emoji_prompts", "load", "load_emoji", "load_mnist"]
