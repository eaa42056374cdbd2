"""Captioned pictures from anywhere: the shipped emoji, a folder of images, or an npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fewstep.errors import FewstepError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True, eq=False)
class Captioned:
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


def load(data: str = "emoji", split: str = "train", size: int = 64) -> Captioned:
    """Captioned pictures by name ("emoji", "mnist"), folder, or npz file.

    A folder holds pictures, each with its caption in a .txt of the same name (else the file name with _ and -
    as spaces is the caption). An npz holds `images` (N, H, W, 3) uint8 and `captions` (N,). Both may keep held-out
    data in a subfolder (or second file `NAME.SPLIT.npz`) called like the
    split; without one, only "train" and "all" exist. An npz in the layout of MNIST has the splits "train" and "test",
    whose size is always 32; "mnist" alone knows the "reference" that ships.

    Raises:
        FewstepError: the place is absent, empty, of another kind, or lacks this split.
    """
    from fewstep.data.emoji import load_emoji
    from fewstep.data.mnist import is_mnist, load_mnist

    if data == "emoji":
        return load_emoji(split)
    if data == "mnist":
        return load_mnist(split)
    if data.endswith(".npz") and is_mnist(Path(data)):
        return load_mnist(split, data)
    place = _split_place(Path(data), split)
    return _from_npz(place, size) if place.suffix == ".npz" else _from_folder(place, size)


def _split_place(path: Path, split: str) -> Path:
    if not path.exists():
        raise FewstepError("no such data", value=str(path), mend="Give 'emoji', a folder of pictures, or an npz.")
    inner = path / split if path.is_dir() else path.with_suffix(f".{split}.npz")
    if inner.exists():
        return inner
    if split in ("train", "all"):
        return path
    raise FewstepError(f"{path} has no split {split!r}", mend=f"Put its pictures into {inner}.")


def _from_npz(path: Path, size: int) -> Captioned:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, captions = arrays["images"], [str(caption) for caption in arrays["captions"]]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        mend = "It must hold images (N, H, W, 3) uint8 and captions (N,), as text without objects."
        raise FewstepError(f"cannot read {path}: {error}", mend=mend) from error
    if images.ndim != 4:
        raise FewstepError(f"images of {path} must be (N, H, W, 3) uint8", value=images.shape)
    if images.dtype == np.uint8 and images.shape[1:3] != (size, size):
        images = np.stack([_fit(image, size) for image in images])
    return Captioned(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions)


def _from_folder(path: Path, size: int) -> Captioned:
    from PIL import Image

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise FewstepError(f"no pictures in {path}", mend=f"Known endings: {', '.join(sorted(PICTURES))}.")
    images, captions = [], []
    for file in files:
        with Image.open(file) as picture:
            images.append(_fit(np.asarray(_on_white(picture)), size))
        note = file.with_suffix(".txt")
        words = file.stem.replace("_", " ").replace("-", " ")
        captions.append(note.read_text(encoding="utf-8").strip() if note.exists() else words)
    return Captioned(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions)


def _on_white(picture):  # type: ignore[no-untyped-def]
    """RGB over a white ground: transparent pixels would otherwise show whatever colour lies beneath."""
    from PIL import Image

    clear = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """Centre crop to a square, then resize to size x size."""
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.LANCZOS))
