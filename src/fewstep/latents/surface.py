"""What our autoencoders share with diffusers' `AutoencoderKL`, and the statistics they store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

MOST, PART = 1024, 128
LEAST_STD = 1e-4
"""A channel that hardly varies is not blown up."""


def point_posterior(mean: Tensor) -> DiagonalGaussianDistribution:
    """A posterior (B, C, h, w) without width: mean, mode and every sample are the same."""
    return DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], 1), deterministic=True)


def feature_column(values: Tensor) -> Tensor:
    """Values (C,) shaped to act on the channels of (B, C, h, w)."""
    return values[:, None, None]


def _some(pictures: Tensor) -> Iterator[Tensor]:
    """At most about a thousand evenly spaced pictures (N, 3, H, W), in parts, as float32 in [0, 1]."""
    for part in pictures[:: max(1, len(pictures) // MOST)].split(PART):
        yield part.float() / 255 if part.dtype == torch.uint8 else part.float()


@torch.no_grad()
def channel_statistics(pictures: Tensor, encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of every channel of `encode` over pictures (N, 3, H, W), in float64 sums."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for part in _some(pictures):
        found = encode(part).double().cpu()
        count += found.numel() // found.shape[1]
        total, square = total + found.sum((0, 2, 3)), square + found.square().sum((0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp(min=LEAST_STD**2).sqrt()
    return mean.float(), std.float()
