"""Tensors to pictures: single images as data URIs, and grids as files that name fewstep as their software."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import atomic, check_free
from fewstep.ownership import SOFTWARE, Over

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a file's ending asks for."""
MOVING = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
"""The same for videos."""
LARGEST = 1 << 28
"""Pixels of a sheet; a picture of so many takes 3 GB while it is made."""
_SOFTWARE_TAG = 0x0131  # of EXIF


def to_pil(image: Tensor) -> Image.Image:
    """A PIL image of a tensor (3, H, W) or (1, H, W) in [0, 1]; values outside are clipped, NaN is shown as magenta.

    Raises:
        FewstepError: another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise FewstepError("an image is a tensor of shape (3, H, W)", value=tuple(image.shape))
    pixels = image.detach().float().cpu().expand(3, -1, -1)
    broken = pixels.isnan().any(0)
    pixels = torch.where(broken, torch.tensor([1.0, 0.0, 1.0])[:, None, None], pixels)
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def png_base64(image: Tensor) -> str:
    """The image as a PNG file in base64."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(image: Tensor) -> str:
    """The image as a PNG data URI."""
    return "data:image/png;base64," + png_base64(image)


def image_grid(images: Tensor, columns: int | None = None, gap: int = 2, zoom: int = 1) -> Tensor:
    """Images (B, 3, H, W) side by side on white, row by row, as one image; `zoom` repeats pixels.

    Raises:
        FewstepError: no images, another shape, or a sheet of more pixels than `LARGEST`.
    """
    if images.ndim != 4 or len(images) == 0:
        raise FewstepError("a grid needs images of shape (B, 3, H, W)", value=tuple(images.shape))
    if len(images) * images.shape[-1] * images.shape[-2] * zoom**2 > LARGEST:
        raise FewstepError("the sheet of pictures would be too large", value=f"zoom {zoom}", hint="Zoom less.")
    images = images.detach().float().cpu().repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    count, channels, height, width = images.shape
    columns = min(count, columns or max(1, round(count**0.5)))
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for k in range(count):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = images[k]
    return sheet


def free_name(path: Path) -> Path:
    """The path, or the first of image-2.png, image-3.png, ... at which nothing stands."""
    names = (path if k == 1 else path.with_stem(f"{path.stem}-{k}") for k in itertools.count(1))
    return next(name for name in names if not name.exists())


def check_image(path: str | Path, overwrite: bool = False, moving: bool | None = None) -> None:
    """Refuse the name of a picture before the picture is made: an unknown ending, or a place that is taken.

    moving: whether it is a video; None where that is not known yet.
    """
    _format(path, {None: {**FORMATS, **MOVING}, True: MOVING, False: FORMATS}[moving])
    check_free(path, overwrite)


def save_image(image: Tensor, path: str | Path, over: Over = "ours") -> None:
    """Write one image (3, H, W), atomically: PNG and WebP keep every pixel, JPEG nearly.

    Raises:
        FewstepError: an ending that is none of `FORMATS`, or a file that may not be replaced.
    """
    kind = _format(path)
    picture, about = to_pil(image), Image.Exif()
    about[_SOFTWARE_TAG] = SOFTWARE
    options: dict[str, Any] = {"exif": about}
    if kind == "PNG":
        text = PngInfo()
        text.add_text("Software", SOFTWARE)
        options = {"pnginfo": text, "optimize": True}
    options |= {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    with atomic(path, over) as draft:
        picture.save(draft, format=kind, **options)


def save_video(frames: Tensor, path: str | Path, rate: float = 8, over: Over = "ours") -> None:
    """Write frames (T, 3, H, W) as a picture that moves, atomically; PNG and WebP keep every pixel.

    rate: frames per second.

    Raises:
        FewstepError: an ending that is none of `MOVING`, or a file that may not be replaced.
    """
    kind = _format(path, MOVING)
    first, *others = [to_pil(frame) for frame in frames]
    about, text = Image.Exif(), PngInfo()
    about[_SOFTWARE_TAG] = SOFTWARE
    text.add_text("Software", SOFTWARE)
    own = {"GIF": {"comment": SOFTWARE}, "PNG": {"pnginfo": text}, "WEBP": {"exif": about, "lossless": True}}
    with atomic(path, over) as draft:
        first.save(
            draft, format=kind, save_all=True, append_images=others, duration=round(1000 / rate), loop=0, **own[kind]
        )


def _format(path: str | Path, known: Mapping[str, str] = FORMATS) -> str:
    ending = Path(path).suffix.lower()
    if ending not in known:
        what = f"a {'video' if known is MOVING else 'picture'} needs a known ending"
        raise FewstepError(what, value=str(path), hint=f"Use {', '.join(known)}.")
    return known[ending]
