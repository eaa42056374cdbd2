"""Captioned pictures from anywhere: the shipped sets by name, a folder of images, or an npz."""

from __future__ import annotations

from pathlib import Path

from fewstep.data.captioned import Broken, CaptionedImages, from_folder, from_npz
from fewstep.data.emoji import load_emoji
from fewstep.data.mnist import is_mnist, load_mnist
from fewstep.errors import FewstepError
from fewstep.files import user_path


def load(data: str = "emoji", split: str = "train", size: int = 64, broken: Broken = "stop") -> CaptionedImages:
    """Captioned pictures by name ("emoji", "mnist"), folder, or npz file.

    A folder holds pictures with a `metadata.jsonl` or `metadata.csv` of their captions (see `captions`), or each with
    its caption in a .txt of the same name (else the file name with _ and - as spaces is the caption). An npz holds
    `images` (N, H, W, 3), or grey (N, H, W), of 8 or 16 bits and `captions` (N,). Both may keep held-out data in a
    subfolder (or second file `NAME.SPLIT.npz`) called like the split; without one, only "train" and "all" exist. An
    npz in the layout of MNIST has the splits "train" and "test", whose size is always 32; "mnist" alone knows the
    "reference" that ships.

    broken: of a folder's pictures.

    Raises:
        FewstepError: the place is absent, empty, of another kind, or lacks this split; a picture cannot be read.
    """
    if data == "emoji":
        return load_emoji(split)
    if data == "mnist":
        return load_mnist(split)
    if data.endswith(".npz") and is_mnist(user_path(data)):
        return load_mnist(split, data)
    place = _split_place(user_path(data), split)
    return from_npz(place, size) if place.suffix == ".npz" else from_folder(place, size, broken)


def _split_place(path: Path, split: str) -> Path:
    if not path.exists():
        raise FewstepError("no such data", value=str(path), hint="Give 'emoji', a folder of pictures, or an npz.")
    inner = path / split if path.is_dir() else path.with_suffix(f".{split}.npz")
    if inner.exists():
        return inner
    if split in ("train", "all"):
        return path
    raise FewstepError(f"{path} has no split {split!r}", hint=f"Put its pictures into {inner}.")
