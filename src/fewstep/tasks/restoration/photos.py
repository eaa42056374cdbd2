"""Pictures of files and back: grey stays grey, 16 bits stay 16, alpha, profile and EXIF are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import atomic
from fewstep.ownership import SOFTWARE, Over

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
_SOFTWARE_TAG = 0x0131  # of EXIF
DEEP = {".png", ".tif", ".tiff"}
"""Files that hold 16 bits."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and what its file says besides.

    Attributes:
        pixels: (1, H, W) grey or (3, H, W), in [0, 1], upright.
        alpha: (1, H, W) in [0, 1], or None.
        bits: 8 or 16 a channel.
        about: EXIF and colour profile, as Pillow writes them.
    """

    pixels: Tensor
    alpha: Tensor | None
    bits: int
    about: dict[str, Any]


def read_photo(file: Path) -> Photo:
    """The picture of a file.

    Raises:
        FewstepError: it is broken, or has 32-bit pixels.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
        raise FewstepError(f"cannot read the picture {file}: {error}", hint="Replace it, or leave it out.") from error
    about = {name: picture.info[name] for name in ("exif", "icc_profile") if picture.info.get(name)}
    about["exif"] = picture.getexif().tobytes()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in (None, "PNG")):
        values = torch.from_numpy(np.asarray(picture).astype(np.float32)) / 65535
        return Photo(values[None], None, 16, about)
    if picture.mode in ("I", "F"):
        raise FewstepError(f"32-bit pixels say nothing of where white lies: {file}", hint="Save it with 16 bits.")
    clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    grey = picture.mode in ("1", "L", "LA")
    mode = ("LA" if grey else "RGBA") if clear else ("L" if grey else "RGB")
    values = torch.from_numpy(np.asarray(picture.convert(mode)).copy()).float() / 255
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return Photo(values[:-1] if clear else values, values[-1:] if clear else None, 8, about)


def write_photo(photo: Photo, file: Path, over: Over = "nothing") -> None:
    """Write a picture, atomically.

    Raises:
        FewstepError: a file is there that may not be replaced, or an ending that cannot hold the picture.
    """
    from PIL import Image

    ending = file.suffix.lower()
    if ending not in FORMATS or (photo.bits == 16 and ending not in DEEP):
        hint = f"Use {', '.join(sorted(DEEP if photo.bits == 16 else FORMATS))}."
        raise FewstepError(f"a picture of {photo.bits} bits needs another ending", value=str(file), hint=hint)
    levels, kind = 2**photo.bits - 1, np.uint16 if photo.bits == 16 else np.uint8
    channels = photo.pixels if photo.alpha is None else torch.cat([photo.pixels, photo.alpha])
    if len(channels) in (2, 4) and ending in (".jpg", ".jpeg", ".bmp"):
        raise FewstepError("this file cannot hold transparency", value=str(file), hint="Write a .png.")
    values = (channels.float().clamp(0, 1) * levels).round().permute(1, 2, 0).numpy().astype(kind)
    picture = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    with atomic(file, over) as draft:
        picture.save(draft, format=FORMATS[ending], **_described(photo.about, ending))


def _described(about: dict[str, Any], ending: str) -> dict[str, Any]:
    """What Pillow is told: what the file said, and fewstep as its software, by which it may be replaced later."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    exif = Image.Exif()
    exif.load(about.get("exif") or b"")
    exif[_SOFTWARE_TAG] = SOFTWARE
    options = {**about, "exif": exif}
    if ending == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Software", SOFTWARE)
    if ending in (".jpg", ".jpeg"):
        options |= {"quality": 95, "subsampling": 0}
    return options
