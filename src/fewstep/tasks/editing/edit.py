"""Editing without training: a picture is noised to a row of any plan and drawn anew from there (SDEdit)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError
from fewstep.pipelines import PipelineSampler
from fewstep.pipelines.from_pictures import encode_pictures, run_from, starts_from_pictures
from fewstep.plan import Plan


@dataclass(frozen=True)
class Edit:
    """What is to become of pictures.

    Attributes:
        prompt: what the edited picture shows.
        strength: 0 leaves the picture as it is, 1 begins at the plan's noisiest row.
        size: side of a square of as many pixels as are worked at; that of the model's pictures where it is 0.
    """

    prompt: str
    strength: float = 0.75
    size: int = 0


def first_row(plan: Plan, strength: float) -> int | None:
    """The row that an edit begins at: the last floor(strength * rows) rows run, as in diffusers; None: no row.

    arXiv 2108.01073 (SDEdit); Cradle2Cane's levels of a four-step plan are those of 0.25, 0.5 and 0.75 (arXiv
    2506.20977).

    Raises:
        FewstepError: a strength outside of [0, 1], or one above 0 that is less than one row.
    """
    if not 0 <= strength <= 1:
        raise FewstepError("the strength lies between 0 and 1", value=strength, hint="0.5 keeps the layout, 1 nothing.")
    rows = math.floor(strength * plan.steps + 1e-9)
    if strength and not rows:
        hint = f"Use {1 / plan.steps:.2g} or more, or a plan of more steps."
        raise FewstepError(f"this strength is less than one of {plan.steps} steps", value=strength, hint=hint)
    return plan.steps - rows if rows else None


def edit_picture(
    generate: PipelineSampler,
    plan: Plan,
    picture: Tensor,
    how: Edit,
    *,
    seeds: Sequence[int] = (0,),
    mask: Tensor | None = None,
) -> Tensor:
    """Edits of a picture, one per seed; at strength 0 the picture itself.

    Args:
        generate: of a text-to-image pipeline.
        plan: any plan for its network.
        picture: (3, H, W) or grey (1, H, W), in [0, 1], of any size: it is worked on at the model's own size.
        how: prompt and strength.
        seeds: whole numbers.
        mask: (H, W), 1 where the picture may change; all other pixels come back exactly.

    Returns:
        (len(seeds), 3, H, W), in [0, 1].

    Raises:
        FewstepError: a picture, a mask or a strength that does not fit, or a pipeline that edits no pictures.
    """
    side, multiple = starts_from_pictures(generate.pipe)
    picture, changes = _checked(picture, mask), None if mask is None else mask > 0.5
    first = first_row(plan, how.strength)
    whole = picture.expand(len(seeds), *picture.shape)
    if first is None:
        return whole.clone()
    size = working_size(picture.shape[-2], picture.shape[-1], how.size or side, multiple)
    z = encode_pictures(generate.pipe, _resized(picture[None], size))
    known = None
    if changes is not None:  # a latent is known where no pixel under it may change
        known = 1 - F.adaptive_max_pool2d(_resized(changes[None, None].float(), size).ceil(), z.shape[-2:])[0]
    z = z.expand(len(seeds), *z.shape[1:])
    drawn = run_from(generate, plan, z, [how.prompt] * len(seeds), seeds, first=first, known=known).cpu()
    drawn = _resized(drawn, tuple(picture.shape[-2:])).clamp(0, 1)
    return drawn if changes is None else torch.where(changes, drawn, whole)


def working_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """Height and width of about side^2 pixels in the picture's proportions, multiples of `multiple`."""
    scale = side / math.sqrt(height * width)
    high, wide = (max(1, round(n * scale / multiple)) * multiple for n in (height, width))
    return high, wide


def _checked(picture: Tensor, mask: Tensor | None) -> Tensor:
    if picture.ndim != 3 or not picture.numel() or len(picture) not in (1, 3):
        raise FewstepError("a picture is (3, H, W), or (1, H, W)", value=tuple(picture.shape))
    if not bool(picture.isfinite().all()):
        raise FewstepError("the picture holds NaN or infinity", hint="Replace them.")
    if mask is not None and tuple(mask.shape) != tuple(picture.shape[-2:]):
        hint = f"Draw it {tuple(picture.shape[-2:])}."
        raise FewstepError("the mask has another size", value=tuple(mask.shape), hint=hint)
    if mask is not None and not bool((mask > 0.5).any()):
        raise FewstepError("the mask lets nothing change", hint="Draw white where the picture may change.")
    return picture.float().cpu().expand(3, -1, -1)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
