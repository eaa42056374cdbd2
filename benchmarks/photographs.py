"""Photographs that packages carry, reduced four times, and the small network that benchmarks train to enlarge them.

Crops of 32 x 32 pixels in [-1, 1] from photographs at half of their size; those learned from and those judged on are
apart: `china` (scikit-learn), `chelsea`, `coffee`, `rocket` and `motorcycle_left` (scikit-image) against `flower`
(scikit-learn) and `astronaut` (scikit-image). scikit-image is no dependency of fewstep: `pip install scikit-image`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError
from fewstep.tasks.restoration import bicubic_downsampling

SIDE, FACTOR = 32, 4
SHAPE = (3, SIDE, SIDE)
SMALLER = bicubic_downsampling(FACTOR, SHAPE)
LEARNED = ("china.jpg", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
JUDGED = ("flower.jpg", "astronaut.png")
STRIDE = 24
"""Between the crops that are judged on."""


def photograph(name: str) -> Tensor:
    """(3, H, W) in [-1, 1], half of the size that the package has."""
    if name in ("china.jpg", "flower.jpg"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(name)
    else:
        try:
            from skimage import data
        except ImportError as error:
            hint = "pip install scikit-image"
            raise FewstepError("these photographs come with scikit-image", value=name, hint=hint) from error
        pixels = np.asarray(Image.open(f"{data.data_dir}/{name}").convert("RGB"))
    values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1
    return F.avg_pool2d(values, 2)


@cache
def learned() -> tuple[Tensor, ...]:
    return tuple(photograph(name) for name in LEARNED)


@cache
def judged() -> Tensor:
    """Crops (N, 3, 32, 32) on a grid, in an order that mixes the photographs."""
    tiles = [photograph(name).unfold(1, SIDE, STRIDE).unfold(2, SIDE, STRIDE) for name in JUDGED]
    crops = torch.cat([tile.permute(1, 2, 0, 3, 4).flatten(0, 1) for tile in tiles])
    return crops[torch.randperm(len(crops), generator=torch.Generator().manual_seed(0))]


def crops(count: int, generator: torch.Generator) -> Tensor:
    """Random crops of the photographs to learn from, each as likely as its area, half of them mirrored."""
    areas = torch.tensor([float(p.shape[1] * p.shape[2]) for p in learned()])
    found = []
    for which in torch.multinomial(areas, count, replacement=True, generator=generator).tolist():
        picture = learned()[which]
        top, left = (int(torch.randint(n - SIDE + 1, (), generator=generator)) for n in picture.shape[1:])
        crop = picture[:, top : top + SIDE, left : left + SIDE]
        found.append(crop.flip(2) if bool(torch.rand((), generator=generator) < 0.5) else crop)
    return torch.stack(found)


def enlarged(small: Tensor) -> Tensor:
    """Small pictures (B, 3, h, w) at the size of the result, by bicubic interpolation."""
    return F.interpolate(small, size=SHAPE[1:], mode="bicubic")


class Restorer(nn.Module):
    """Clean picture from (state, picture given, noise level): a U-Net that adds to the picture given."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        wide = 2 * width
        self.enter = nn.Conv2d(24, width, 3, padding=1)
        self.upper, self.lower = _Block(width), _Block(wide)
        self.down, self.middle = nn.Conv2d(width, wide, 3, stride=2, padding=1), _Block(wide)
        self.up, self.last = nn.Conv2d(wide, width, 1), _Block(width)
        self.leave = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        level = (sigma / (0.25 * alpha**2 + sigma**2).sqrt()).reshape(-1, 1).expand(len(x), 1)
        told = torch.cat([level, (level + 1e-3).log()], 1)
        entered = torch.cat([x / (0.25 + sigma**2).sqrt(), 2 * given], 1)
        high = self.enter(F.pixel_unshuffle(entered, 2).contiguous(memory_format=torch.channels_last))
        high = self.upper(high, told)
        low = self.middle(self.lower(self.down(high), told), told)
        high = self.last(high + F.interpolate(self.up(low), scale_factor=2), told)
        return given + F.pixel_shuffle(self.leave(F.silu(high)), 2).contiguous()


class _Block(nn.Module):
    """Two convolutions that add to what comes in, scaled and shifted by the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.level = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 2 * width))
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.level(told)[..., None, None].chunk(2, 1)
        hidden = self.first(F.silu(self.norm(x) * (1 + scale) + shift))
        return x + self.second(F.silu(hidden))
