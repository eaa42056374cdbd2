"""Handwritten digits: 2,500 test images ship with the package; the whole set is read from the user's own npz."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from fewstep.data.captioned import CaptionedImages
from fewstep.errors import FewstepError, nearest
from fewstep.files import read_tensors, write_tensors

SHIPPED = Path(__file__).parent / "mnist" / "reference.safetensors"
SPLITS = ("reference", "train", "test")
NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
SIDE = 32
COLUMNS = 50


def load_mnist(split: str = "reference", file: str | Path | None = None) -> CaptionedImages:
    """Digits (N, 3, 32, 32) uint8, white on black and zero-padded from 28x28, with captions "digit 0" to "digit 9".

    Args:
        split: "reference", the shipped first 2,500 test images; "train" and "test" are read from `file`.
        file: npz with `train_images`, `train_labels`, `test_images`, `test_labels`, or with Keras' names `x_train`,
            `y_train`, `x_test`, `y_test`.

    Raises:
        FewstepError: unknown split, no file for a split that does not ship, or a file of another kind.
    """
    if split not in SPLITS:
        raise FewstepError("unknown split of MNIST", value=split, hint=nearest(split, SPLITS))
    if split == "reference":
        pixels, labels = _shipped()
    elif file is None:
        hint = "Give the file of the whole set: an npz with train_images, train_labels, test_images, test_labels."
        raise FewstepError("only the reference of MNIST ships with fewstep", value=split, hint=hint)
    else:
        pixels, labels = _from_npz(Path(file), split)
    space = (SIDE - pixels.shape[-1]) // 2
    images = F.pad(torch.tensor(pixels), (space,) * 4)[:, None].expand(-1, 3, -1, -1)
    return CaptionedImages(images, [f"digit {label}" for label in labels.tolist()])


def is_mnist(file: Path) -> bool:
    """Whether an npz holds the splits of MNIST rather than captioned pictures."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return any(image.format("train") in arrays for image, _ in NAMES)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def build(npz: str | Path, count: int = 2500) -> int:
    """Write the shipped reference from the first `count` test images of an npz; returns bytes."""
    from PIL import Image

    pixels, labels = (part[:count] for part in _from_npz(Path(npz), "test"))
    side = pixels.shape[-1]
    sheet = pixels.reshape(-1, COLUMNS, side, side).swapaxes(1, 2).reshape(-1, COLUMNS * side)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(buffer, "PNG", optimize=True)
    data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    write_tensors(SHIPPED, {"bytes": data, "labels": torch.from_numpy(labels.astype(np.uint8))})
    return len(data)


def _shipped() -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    store = read_tensors(SHIPPED)
    with Image.open(io.BytesIO(store["bytes"].numpy().tobytes())) as picture:
        sheet = np.asarray(picture)
    side = sheet.shape[1] // COLUMNS
    pixels = sheet.reshape(-1, side, COLUMNS, side).swapaxes(1, 2).reshape(-1, side, side)
    return pixels, store["labels"].numpy()


def _from_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = [pair for pair in NAMES if pair[0].format(split) in arrays]
            image, label = (name.format(split) for name in (found or NAMES)[0])
            pixels, labels = arrays[image], arrays[label]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        hint = "It must hold train_images, train_labels, test_images and test_labels, or Keras' x_train, y_train, ..."
        raise FewstepError(f"cannot read {path}: {error}", hint=hint) from error
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1]:
        raise FewstepError(f"images of {path} must be (N, 28, 28) uint8 with N labels", value=pixels.shape)
    return pixels, labels
