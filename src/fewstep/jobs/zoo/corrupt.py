"""Corruptions of pictures in [0, 1] that a quality network must notice; one kind per picture, drawn at random."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def corrupted(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture (B, 3, H, W) spoiled by one of six kinds at a random strength."""
    kinds = (noised, blurred, pixelated, mixed, tinted, warped)
    kind = torch.randint(len(kinds), (len(pictures),), generator=generator)
    out = pictures.clone()
    for index, spoil in enumerate(kinds):
        chosen = kind == index
        if chosen.any():
            strength = 0.25 + 0.75 * torch.rand(int(chosen.sum()), 1, 1, 1, generator=generator)
            out[chosen] = spoil(pictures[chosen], strength, generator).clamp(0, 1)
    return out


def noised(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise, fine or in coarse patches."""
    size = pictures.shape[-1]
    coarse = int(torch.randint(0, 3, (1,), generator=generator))
    noise = torch.randn(*pictures.shape[:2], size >> coarse, size >> coarse, generator=generator)
    return pictures + 0.25 * strength * F.interpolate(noise, size=pictures.shape[-2:], mode="bilinear")


def blurred(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blend with a box blur of 7 pixels."""
    soft = F.avg_pool2d(F.pad(pictures, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    return torch.lerp(pictures, soft, strength)


def pixelated(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blend with blocks of 8 pixels."""
    blocks = F.interpolate(F.avg_pool2d(pictures, 8), size=pictures.shape[-2:], mode="nearest")
    return torch.lerp(pictures, blocks, 0.5 * strength)


def mixed(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A second picture shows through."""
    other = pictures.roll(1, 0) if len(pictures) > 1 else pictures.flip(-1)
    return torch.lerp(pictures, other, 0.5 * strength)


def tinted(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Wrong contrast and colour cast, the ground included: what a wrong scale of the latents looks like."""
    cast = torch.randn(len(pictures), 3, 1, 1, generator=generator) * 0.15
    gain = 1 + 0.8 * (torch.rand(len(pictures), 1, 1, 1, generator=generator) - 0.5)
    return torch.lerp(pictures, (pictures - 0.5) * gain + 0.5 + cast, strength)


def warped(pictures: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A smooth random displacement of up to about 8 % of the width."""
    count = len(pictures)
    field = torch.randn(count, 2, 6, 6, generator=generator) * 0.16
    bend = F.interpolate(field, size=pictures.shape[-2:], mode="bicubic") * strength
    eye = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(count, 2, 3)
    grid = F.affine_grid(eye, list(pictures.shape), align_corners=False) + bend.permute(0, 2, 3, 1)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
