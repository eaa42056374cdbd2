"""Make the shipped emoji set from raw Noto images: plain captions, and a split by combination.

Raw captions are Unicode names ("runner, emoji modifier fitzpatrick type-6, female sign"). They become plain
words ("woman runner with dark skin tone"). Held out are whole combinations of skin tone, person and activity:
each factor is seen in training, the combination never is.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fewstep.files import write_json, write_tensors

TONES = {
    "emoji modifier fitzpatrick type-1-2": "light skin tone",
    "emoji modifier fitzpatrick type-3": "medium-light skin tone",
    "emoji modifier fitzpatrick type-4": "medium skin tone",
    "emoji modifier fitzpatrick type-5": "medium-dark skin tone",
    "emoji modifier fitzpatrick type-6": "dark skin tone",
}
SIGNS = {"female sign": "woman", "male sign": "man"}
MIRRORED = "black rightwards arrow"
WORDS = {
    "adult": "person",
    "heavy black heart": "red heart",
    "combining enclosing keycap": "keycap",
    "black rightwards arrow": "facing right",
    "u1faf7": "leftwards pushing hand",
    "u1faf8": "rightwards pushing hand",
    "male with stroke and male and female sign": "transgender symbol",
    "u1fac6": "fingerprint",
    "u1fabe": "leafless tree",
    "u1fa89": "harp",
    "u1fadc": "root vegetable",
    "u1fa8f": "shovel",
    "u1fadf": "splatter",
    "u1fae9": "face with bags under eyes",
}
PATTERNS = (
    (r"^emoji component ", "with "),
    (r"^regional indicator symbol ", ""),
    (r"^(circled|squared|negative squared|negative circled) latin capital ", r"\1 "),
    (r"^white (?=\w+ pointing)", ""),
    (r"^latin capital letter ", "letter "),
)


def plain_caption(raw: str) -> str:
    """Plain words for a raw Unicode name list: one tone goes to the end, several stay with their person."""
    parts = raw.split(", ")
    tones = [TONES[part] for part in parts if part in TONES]
    sign = next((SIGNS[part] for part in parts if part in SIGNS), "")
    things: list[str] = []
    for part in parts:
        if part in TONES and len(tones) > 1 and things:
            things[-1] += f" with {TONES[part]}"
        elif part not in TONES and part not in SIGNS:
            things.append(_plain_part(part))
    head, *rest = things or [""]
    text = " ".join([sign, head, *(_joined(thing) for thing in rest)]).strip()
    return f"{text} with {tones[0]}".removeprefix(" with ") if len(tones) == 1 else text


def _plain_part(part: str) -> str:
    text = WORDS.get(part, part)
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text)
    return text


def _joined(thing: str) -> str:
    return thing if thing.startswith(("with ", "facing ", "keycap")) else f"and {thing}"


def split_by_combination(
    raws: Sequence[str], images: np.ndarray, evaluation: int = 250, calibration: int = 60
) -> list[str]:
    """Name the split ("train", "evaluation", "calibration") of each image.

    A combination is (activity, tone, sign); mirrored variants belong to their combination. At most a quarter of
    the combinations of an activity are held out, and none whose exact picture exists under another combination.
    """
    keys = [_combination(raw) for raw in raws]
    pictures: dict[bytes, set[object]] = defaultdict(set)
    for index, image in enumerate(images):
        pictures[image.tobytes()].add(keys[index] or ("single", index))
    copied = {key for owners in pictures.values() if len(owners) > 1 for key in owners}
    combinations = {key for key in keys if key is not None}
    room = {base: count // 4 for base, count in Counter(key[0] for key in combinations).items()}
    candidates = sorted(combinations - copied, key=lambda key: hashlib.sha256(repr(key).encode()).digest())
    sizes = Counter(key for key in keys if key is not None)
    held: dict[object, str] = {}
    filled = {"evaluation": 0, "calibration": 0}
    for key in candidates:
        name = "evaluation" if filled["evaluation"] < evaluation else "calibration"
        if filled[name] >= calibration and name == "calibration":
            break
        if room[key[0]] > 0:
            room[key[0]] -= 1
            held[key] = name
            filled[name] += sizes[key]
    return [held.get(key, "train") for key in keys]


def _combination(raw: str) -> tuple[str, str, str] | None:
    """(activity, tone, sign) of a picture with exactly one skin tone, else None."""
    parts = raw.split(", ")
    tones = [part for part in parts if part in TONES]
    if len(tones) != 1:
        return None
    sign = next((part for part in parts if part in SIGNS), "")
    rest = [part for part in parts if part not in TONES and part not in SIGNS and part != MIRRORED]
    return ", ".join(rest), tones[0], sign


def build(npz: str | Path, out: str | Path) -> int:
    """Write `images.safetensors` (WebP bytes, offsets) and `captions.json` into `out`; returns bytes."""
    raw = np.load(npz, allow_pickle=False)
    names, images = [str(name) for name in raw["captions"]], raw["images"]
    blobs = [_webp(image) for image in images]
    offsets = np.cumsum([0, *(len(blob) for blob in blobs)])
    tensors = {
        "bytes": torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8),
        "offsets": torch.from_numpy(offsets.astype(np.int64)),
    }
    write_tensors(Path(out) / "images.safetensors", tensors)
    splits = split_by_combination(names, images)
    rows = [
        {"caption": plain_caption(name), "split": split, "name": name}
        for name, split in zip(names, splits, strict=True)
    ]
    write_json(Path(out) / "captions.json", rows)
    return int(offsets[-1])


def _webp(image: np.ndarray) -> bytes:
    """Near-lossless: channels are rounded to multiples of 4 (white stays), which keeps the set under 9 MB."""
    from PIL import Image

    buffer = io.BytesIO()
    rounded = np.minimum((image.astype(int) + 2) // 4 * 4, 255)
    near = np.where(image == 255, 255, rounded).astype(np.uint8)
    Image.fromarray(near).save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()
