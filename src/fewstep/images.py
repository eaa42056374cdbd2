"""Images as tensors (..., 3, H, W): bytes, or floats in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError

SLACK = 0.5
"""How far a value may lie outside of [0, 1]: decoders overshoot, images in [-1, 1] or 0..255 go farther."""


def as_float(images: Tensor) -> Tensor:
    """Bytes become float32 in [0, 1]; floating images become float32.

    Raises:
        FewstepError: other integers, or see `check_range`.
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    return check_range(images).float()


def check_range(images: Tensor) -> Tensor:
    """Return the images if they are floats about in [0, 1].

    Raises:
        FewstepError: integers, or values far outside, such as those of images in 0..255 or [-1, 1].
        NonFiniteError: NaN or infinity.
    """
    if not images.is_floating_point():
        hint = "Give bytes (uint8) or floats in [0, 1]."
        raise FewstepError("images must be bytes or floats", value=str(images.dtype), hint=hint)
    if not images.numel():
        return images
    low, high = (float(edge) for edge in images.detach().aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        if not bool(images.isfinite().all()):
            raise NonFiniteError("images hold NaN or infinity", hint="Look at the network that drew them: it diverged.")
        hint = "Divide images in 0..255 by 255; shift images in [-1, 1] by x / 2 + 0.5."
        raise FewstepError("images must lie in [0, 1]", value=f"from {low:.3g} to {high:.3g}", hint=hint)
    return images
