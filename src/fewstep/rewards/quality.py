"""Quality without a reference: a small network that tells real images from corrupted and badly generated ones."""

from __future__ import annotations

from itertools import pairwise

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class QualityNet(ModelMixin, ConfigMixin):
    """Strided convolutions, global pooling, one logit: images (B, 3, H, W) in [0, 1] -> (B,), higher is more real.

    The default has 0.25 M parameters and takes 6 million multiply-adds for a 64x64 image; any height and width works.
    """

    @register_to_config
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 128), groups: int = 8) -> None:
        super().__init__()
        channels = (3, *widths)
        # All but the last convolution halve the image; the last only mixes, so that small images keep some extent.
        strides = [2] * (len(widths) - 1) + [1]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=s, padding=1), nn.GroupNorm(groups, o), nn.SiLU())
                for (i, o), s in zip(pairwise(channels), strides, strict=True)
            )
        )
        self.head = nn.Linear(channels[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logit of "this is a real image": images (B, 3, H, W) in [0, 1] -> (B,)."""
        features = self.blocks(2 * images - 1)
        return self.head(features.mean(dim=(2, 3))).squeeze(1)
