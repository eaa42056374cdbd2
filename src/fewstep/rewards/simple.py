"""Published no-reference measures without weights: for pipelines and tests that may download nothing.

They measure one property, not quality: noise raises sharpness, garish colours raise colourfulness. Useful as a
default where no judge exists, and as a warning light beside a learned reward; never as the only evidence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.registry import no_argument
from fewstep.rewards.base import REWARDS, Reward, RewardFunction

TINY = 1e-12  # keeps the gradient of square roots finite on flat images


def luma(images: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of RGB images, ITU-R BT.601 weights."""
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def sharpness(images: Tensor) -> Tensor:
    """Variance of the Laplacian of the luma (Pech-Pacheco et al., ICPR 2000, measure LAPV): (B, 3, H, W) -> (B,)."""
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return F.conv2d(luma(images), kernel).var(dim=(1, 2, 3), correction=0)


def colourfulness(images: Tensor) -> Tensor:
    """Hasler and Suesstrunk (SPIE 2003), M3 in units of 0-255: 0 is grey, above 100 extremely colourful."""
    red, green, blue = (255 * images).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    spread = (opponents.var(-1, correction=0).sum(0) + TINY).sqrt()
    shift = (opponents.mean(-1).square().sum(0) + TINY).sqrt()
    return spread + 0.3 * shift


def contrast(images: Tensor) -> Tensor:
    """Root-mean-square contrast of the luma (Peli, JOSA A 1990): (B, 3, H, W) -> (B,)."""
    return (luma(images).var(dim=(1, 2, 3), correction=0) + TINY).sqrt()


def none(images: Tensor) -> Tensor:
    """Nothing: 0 for every image (B, 3, H, W), so that a term of an objective is left out."""
    return images.new_zeros(len(images))


def _join(measure: Callable[[Tensor], Tensor]) -> None:
    name = measure.__name__

    @REWARDS.register(name)
    def make(argument: str) -> Reward:
        no_argument(name, argument)
        return RewardFunction(name, lambda images, prompts: measure(images), differentiable=True)


for _measure in (sharpness, colourfulness, contrast, none):
    _join(_measure)
