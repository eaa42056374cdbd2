"""The Noto emoji set that ships with the package: 64x64 pictures with plain captions, split by combination."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.data.captioned import CaptionedImages
from fewstep.errors import FewstepError, nearest
from fewstep.files import read_json, read_tensors

FOLDER = Path(__file__).parent / "emoji"
SPLITS = ("train", "calibration", "evaluation")


def load_emoji(split: str = "train") -> CaptionedImages:
    """Pictures (N, 3, 64, 64) uint8 and their captions, in the order of the Unicode tables.

    Args:
        split: "train", "calibration" (60 held-out), "evaluation" (250 held-out) or "all".

    Raises:
        FewstepError: the split does not exist.
    """
    rows = _rows(split)
    store = read_tensors(FOLDER / "images.safetensors")
    data, offsets = store["bytes"].numpy(), store["offsets"].tolist()
    images = np.stack([_decode(data[offsets[i] : offsets[i + 1]].tobytes()) for i, _ in rows])
    return CaptionedImages(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), [row["caption"] for _, row in rows]
    )


def emoji_prompts(split: str = "evaluation") -> list[str]:
    """Captions of a split without decoding any picture, each once, in order."""
    return list(dict.fromkeys(row["caption"] for _, row in _rows(split)))


def _rows(split: str) -> list[tuple[int, dict[str, Any]]]:
    if split not in (*SPLITS, "all"):
        raise FewstepError("unknown emoji split", value=split, hint=nearest(split, (*SPLITS, "all")))
    rows = read_json(FOLDER / "captions.json")
    return [(index, row) for index, row in enumerate(rows) if split in ("all", row["split"])]


def _decode(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
