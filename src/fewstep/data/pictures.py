"""A picture of any kind as the eye sees it: upright, eight bits of sRGB a channel, on white."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.errors import FewstepError

ENDINGS = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
OTHERS = {".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".nef", ".cr2", ".arw"}
"""Pictures that are not read."""


def read_picture(file: Path, size: int) -> np.ndarray:
    """The centre square of a picture file, (size, size, 3) uint8.

    Raises:
        FewstepError: the file is broken, or of a kind whose white is not known.
    """
    return _read(file, lambda picture: centre_square(picture, size))


def read_whole(file: Path) -> np.ndarray:
    """A picture file as it is, (height, width, 3) uint8.

    Raises:
        FewstepError: see `read_picture`.
    """
    return _read(file, np.asarray)


def _read(file: Path, use: Callable[[Any], np.ndarray]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return use(rgb(picture))
    except FewstepError as error:
        raise FewstepError(f"cannot use the picture {file}: {error.what}", hint=error.hint) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
        hint = "Replace or delete it, or leave such pictures out with broken=skip."
        raise FewstepError(f"cannot read the picture {file}: {error}", hint=hint) from error


def rgb(picture: Any) -> Any:
    """A PIL image as the eye sees it: turned as its EXIF says, in sRGB, transparent pixels white.

    16-bit grey is scaled to eight bits; a profile that is broken is left out of account.

    Raises:
        FewstepError: 32-bit numbers, which say nothing of where white lies.
    """
    from PIL import Image, ImageOps

    picture = _eight_bits(ImageOps.exif_transpose(picture))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        colours = _in_srgb(clear.convert("RGB"), picture.info.get("icc_profile"))
        return Image.composite(colours, Image.new("RGB", clear.size, (255, 255, 255)), clear.getchannel("A"))
    return _in_srgb(picture, picture.info.get("icc_profile"))


def from_array(image: np.ndarray, size: int) -> np.ndarray:
    """The centre square of pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of 8 or 16 bits, (size, size, 3) uint8.

    Raises:
        FewstepError: another shape or type.
    """
    from PIL import Image

    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.dtype == np.uint16:
        image = (image.astype(np.uint32) * 255 + 32767) // 65535
        image = image.astype(np.uint8)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4))):
        raise FewstepError(
            "pixels must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16",
            value=f"{image.shape} {image.dtype}",
            hint="Scale floats with (255 * x).round().astype('uint8'); put the channels last.",
        )
    return centre_square(rgb(Image.fromarray(np.ascontiguousarray(image))), size)


def centre_square(picture: Any, size: int) -> np.ndarray:
    """Centre crop to a square, then resize to size x size."""
    from PIL import Image

    width, height = picture.size
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.LANCZOS))


def _eight_bits(picture: Any) -> Any:
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        # Pillow's own conversion cuts every value above 255 off; older versions open 16-bit PNG as "I"
        values = np.asarray(picture).astype(np.uint32)
        grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        grey.info = {name: value for name, value in picture.info.items() if name != "transparency"}
        return grey
    if picture.mode in ("I", "F"):
        raise FewstepError("32-bit pixels say nothing of where white lies", hint="Save it with 8 or 16 bits a channel.")
    return picture


def _in_srgb(picture: Any, profile: bytes | None) -> Any:
    """RGB by the picture's own colour profile; without one by Pillow's conversion."""
    from PIL import ImageCms

    if picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one of another kind of pixels
    return picture.convert("RGB")
