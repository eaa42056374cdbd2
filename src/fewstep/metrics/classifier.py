"""A small classifier: features of its kind of picture, and the judge of class-conditional models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError, nearest
from fewstep.metrics.features import FEATURES, FeatureNet
from fewstep.registry import need_argument


class ClassNet(ModelMixin, ConfigMixin):
    """Convolutions with two halvings, pooled features, one linear layer: images (B, 3, H, W) in [0, 1] -> (B, classes).

    names: the classes in the order of the logits.
    """

    name = "class"
    """As a judge, in tables."""

    @register_to_config
    def __init__(self, names: Sequence[str], widths: tuple[int, ...] = (24, 48, 64, 64), groups: int = 8) -> None:
        super().__init__()
        channels = (3, *widths)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(groups, o), nn.SiLU())
            for i, o in pairwise(channels)
        )
        self.head = nn.Linear(2 * channels[-1], len(names))

    def features(self, images: Tensor) -> Tensor:
        """Mean and maximum of the last maps: images (B, 3, H, W) in [0, 1] -> (B, 2 * last width)."""
        hidden = 2 * images - 1
        for depth, block in enumerate(self.blocks):
            hidden = block(hidden)
            if depth < 2:
                hidden = F.max_pool2d(hidden, 2)
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str | int]) -> Tensor:
        """As a judge: whether it sees the class that was asked for, so that the mean is an accuracy.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: names or numbers of classes.

        Returns:
            Ones and zeros (B,).

        Raises:
            FewstepError: a prompt is not the name of a class.
        """
        names = list(self.config.names)
        asked = torch.tensor([_number(prompt, names) for prompt in prompts])
        return (self(images.float()).argmax(1).cpu() == asked).float()


def _number(asked: str | int, names: list[str]) -> int:
    if isinstance(asked, int) and 0 <= asked < len(names):
        return asked
    if asked not in names:
        raise FewstepError("the classifier has no such class", value=asked, hint=nearest(str(asked), names))
    return names.index(str(asked))


def load_classifier(folder: str | Path) -> ClassNet:
    """A `ClassNet` written by `save_pretrained`, in float32 whatever was stored.

    Raises:
        FewstepError: the folder holds no such network.
    """
    if not Path(folder).is_dir():
        raise FewstepError("there is no such classifier", value=str(folder), hint="Check the path of the folder.")
    try:
        network = ClassNet.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FewstepError(
            f"cannot load a ClassNet: {str(error).splitlines()[0]}",
            value=str(folder),
            hint="Give a folder made by `fewstep train classifier`.",
        ) from error
    return network.eval().requires_grad_(False)


@FEATURES.register("classifier")
def classifier_features(argument: str) -> FeatureNet:
    """`classifier:FOLDER`: the features below the last layer of a `ClassNet`."""
    network = load_classifier(need_argument("classifier", argument, "FOLDER"))
    return FeatureNet(f"classifier-{Path(argument).name}", network.features)
