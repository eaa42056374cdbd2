"""Large pictures in tiles that overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import FewstepError

Restore = Callable[[Tensor, int, int], Tensor]
"""(tile (C, size, size), its top, its left) -> restored tile (C, scale size, scale size)."""


def tiled(restore: Restore, picture: Tensor, size: int, overlap: int, scale: int = 1) -> Tensor:
    """A picture restored tile by tile: the tiles fade into each other where they overlap.

    The outer quarter of each overlap counts for nothing, so that seams are exactly invisible for a function that looks
    no farther than overlap / 4 pixels. A picture smaller than a tile is continued by its border pixels.

    Args:
        restore: of one tile.
        picture: (C, H, W).
        size: side of a tile, of the picture given.
        overlap: of neighbours, in the same pixels.
        scale: how much larger the result is.

    Returns:
        (C, scale H, scale W).

    Raises:
        FewstepError: an overlap that leaves nothing of a tile.
    """
    if not 0 <= overlap <= size // 2:
        raise FewstepError("tiles overlap by at most half their side", value=overlap, hint=f"Use {size // 4}.")
    height, width = picture.shape[-2:]
    grown = (0, max(size - width, 0), 0, max(size - height, 0))
    whole = torch.nn.functional.pad(picture[None], grown, mode="replicate")[0] if any(grown) else picture
    total: Tensor | None = None
    weights = torch.zeros(1, *(scale * n for n in whole.shape[-2:]), dtype=picture.dtype)
    for top in starts(whole.shape[-2], size, overlap):
        for left in starts(whole.shape[-1], size, overlap):
            done = restore(whole[:, top : top + size, left : left + size], top, left).cpu()
            fade = torch.outer(
                _fade(top, whole.shape[-2], size, overlap, scale), _fade(left, whole.shape[-1], size, overlap, scale)
            ).to(picture.dtype)
            total = done.new_zeros(len(done), *weights.shape[1:]) if total is None else total
            place = (slice(None), *(slice(scale * at, scale * (at + size)) for at in (top, left)))
            total[place] += done * fade
            weights[place] += fade
    assert total is not None
    return (total / weights)[:, : scale * height, : scale * width]


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: equally far apart, at least `overlap` shared."""
    count = 1 if length <= size else -(-(length - overlap) // (size - overlap))
    return [round(k * (length - size) / max(count - 1, 1)) for k in range(count)]


def _fade(start: int, length: int, size: int, overlap: int, scale: int) -> Tensor:
    """Weights along a side: 1 inside, falling to 0 in the overlap, but not at the border of the picture."""
    place = torch.arange(scale * size, dtype=torch.float64) + 0.5
    silent, ramp = scale * (overlap // 4), max(scale * (overlap - 2 * (overlap // 4)), 1)
    rising = ((place - silent) / ramp).clamp(0, 1) if start > 0 else torch.ones_like(place)
    falling = ((place.flip(0) - silent) / ramp).clamp(0, 1) if start + size < length else torch.ones_like(place)
    return rising * falling
