"""Quality without a reference: a small network that tells real images from corrupted and badly generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.registry import need_argument
from fewstep.rewards.base import REWARDS, Reward, RewardFunction


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


def realness(network: QualityNet, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Logit (B,) of images (B, 3, H, W) in [0, 1], on the device of the network; prompts are only counted.

    Not its sigmoid: differences between good images must not saturate.
    """
    parameter = next(network.parameters())
    return network(images.to(parameter.device, parameter.dtype))


@REWARDS.register("quality")
def quality(argument: str) -> Reward:
    """`quality:FOLDER` written by `QualityNet.save_pretrained`; computed in float32 whatever was stored.

    Raises:
        FewstepError: the folder holds no such network.
    """
    folder = need_argument("quality", argument, "FOLDER")
    if not Path(folder).is_dir():
        raise FewstepError("there is no such quality network", value=folder, hint="Check the path of the folder.")
    try:
        network = QualityNet.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FewstepError(
            f"cannot load a QualityNet: {str(error).splitlines()[0]}",
            value=folder,
            hint="Give a folder with config.json and diffusion_pytorch_model.safetensors of a QualityNet.",
        ) from error
    network = network.eval().requires_grad_(False)
    return RewardFunction("quality", partial(realness, network), differentiable=True, networks=(network,))
