"""Captioned pictures, and how they are read from a folder of images or an npz."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fewstep.data.captions import caption_beside, listed
from fewstep.data.pictures import ENDINGS, OTHERS, from_array, read_picture
from fewstep.errors import FewstepError

Broken = Literal["stop", "skip"]
"""What is done about a picture that cannot be read: an error that names it, or a warning and the others."""


@dataclass(frozen=True, eq=False)
class CaptionedImages:
    """Pictures (N, 3, H, W) uint8 with one caption each; iterates as the pair `images, captions`."""

    images: torch.Tensor
    captions: list[str]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            found = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise FewstepError("pictures must be (N, 3, H, W) uint8", value=found)
        if len(self.images) != len(self.captions) or not self.captions:
            raise FewstepError(
                "each picture needs one caption, and there must be at least one",
                value=f"{len(self.images)} pictures, {len(self.captions)} captions",
            )

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.images, self.captions))

    def __len__(self) -> int:
        return len(self.captions)


def from_npz(path: Path, size: int) -> CaptionedImages:
    """Pictures of an npz with `images` and `captions`, resized to (size, size) (FewstepError if it holds others)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, captions = arrays["images"], arrays["captions"].tolist()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        hint = "It must hold images (N, H, W, 3) uint8 and captions (N,), as text without objects."
        raise FewstepError(f"cannot read {path}: {error}", hint=hint) from error
    if images.ndim not in (3, 4) or not isinstance(captions, list):
        raise FewstepError(f"images of {path} must be (N, H, W, 3) uint8, with N captions", value=images.shape)
    try:
        words = [caption.decode() if isinstance(caption, bytes) else str(caption) for caption in captions]
        pixels = [from_array(image, size) for image in images]
    except (FewstepError, UnicodeDecodeError) as error:
        raise FewstepError(f"cannot use {path}: {error}") from error
    return _stacked(pixels, words)


def from_folder(path: Path, size: int, broken: Broken) -> CaptionedImages:
    """Pictures of a folder with their captions, resized to (size, size) (FewstepError if one cannot be read)."""
    wanted = captioned_files(path)
    images, captions, left = [], [], []
    for file, caption in wanted.items():
        try:
            images.append(read_picture(file, size))
        except FewstepError as error:
            if broken == "stop":
                raise
            left.append(str(error))
        else:
            captions.append(caption)
    if left:
        if not images:
            raise FewstepError(f"no picture in {path} can be read", value=left[0], hint="Are these pictures?")
        warnings.warn(f"{len(left)} of {len(wanted)} pictures are left out:\n" + "\n".join(left), stacklevel=3)
    return _stacked(images, captions)


def captioned_files(path: Path) -> dict[Path, str]:
    """Pictures of a folder in the order of their table, else of their names, with their captions."""
    visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    files = [file for file in visible if file.suffix.lower() in ENDINGS]
    others = [file.name for file in visible if file.suffix.lower() in OTHERS]
    table = listed(path)
    if table is not None and (lost := [file.name for file in files if file not in table]):
        raise FewstepError(f"{path}'s table of captions lacks a picture", value=lost[0], hint="Add a row for it.")
    found = {file: caption_beside(file) for file in files} if table is None else table
    if not found:
        hint = f"Known endings: {', '.join(sorted(ENDINGS))}."
        raise FewstepError(f"no pictures in {path}", value=others[:1] or None, hint=hint)
    if others:
        warnings.warn(f"{len(others)} files of {path} are left out, such as {others[0]}: convert them", stacklevel=4)
    return found


def _stacked(pixels: list[np.ndarray], captions: list[str]) -> CaptionedImages:
    images = np.stack(pixels) if pixels else np.zeros((0, 1, 1, 3), np.uint8)
    return CaptionedImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions)
