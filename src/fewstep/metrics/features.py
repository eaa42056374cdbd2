"""Feature networks: images -> vectors in which distributions are compared. Use at least two; one can be fooled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.clip import load_clip
from fewstep.errors import FewstepError
from fewstep.images import as_float
from fewstep.registry import Maker, Registry, need_argument

CHUNK = 64  # images per forward pass


@dataclass(frozen=True)
class FeatureNet:
    """A named function: images (B, 3, H, W) float32 in [0, 1] -> features (B, d)."""

    name: str
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = CHUNK) -> Tensor:
        """Features (n, d) float64 on the CPU of images (n, 3, H, W), bytes or float in [0, 1].

        Raises:
            FewstepError: no images, another shape or range, or features that are not finite.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise FewstepError(
                "features need images (n, 3, H, W)", value=tuple(images.shape), hint="Stack at least one RGB image."
            )
        features = torch.cat([self.network(as_float(part)).double().cpu() for part in images.split(batch)])
        if not features.isfinite().all():
            raise FewstepError(
                f"features of {self.name} are not finite", hint="Look for NaN in the images: the network diverged."
            )
        return features


FEATURES: Registry[Maker[FeatureNet]] = Registry(
    "feature network", "fewstep.features", package="fewstep.metrics", part=FeatureNet
)


def load_features(spec: str) -> FeatureNet:
    """Feature network for `random`, `random:SEED`, `pixels`, `pixels:SIDE` or `clip:FOLDER_OR_ID`.

    Raises:
        FewstepError: unknown kind, wrong argument, or weights that cannot be loaded.
    """
    return FEATURES.load(spec)


@FEATURES.register("random")
def random_features(argument: str = "") -> FeatureNet:
    """Three random 3x3 convolutions with stride 2, ReLU, average pooling: d = 64; nobody can have trained on it.

    The same weights on every machine: they come from the integer stream of PCG64, uniform with He's variance.
    """
    layers = random_layers(_whole("random", argument, 0))

    def network(images: Tensor) -> Tensor:
        hidden = 2 * images - 1
        for weight, bias in layers:
            hidden = F.relu(F.conv2d(hidden, weight.to(hidden.device), bias.to(hidden.device), stride=2, padding=1))
        return hidden.mean((2, 3))

    return FeatureNet(f"random:{argument}" if argument else "random", network)


def random_layers(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of three convolutions 3 -> 16 -> 32 -> 64, from the integer stream of PCG64."""
    generator = np.random.Generator(np.random.PCG64(seed))

    def uniform(bound: float, *shape: int) -> Tensor:
        return torch.from_numpy(bound * (2 * generator.random(shape) - 1)).float()

    layers = []
    for inside, outside in ((3, 16), (16, 32), (32, 64)):
        bound = (6 / (9 * inside)) ** 0.5  # a uniform on [-b, b] has the variance b^2 / 3 = 2 / fan-in
        layers.append((uniform(bound, outside, inside, 3, 3), uniform(0.5, outside)))
    return layers


@FEATURES.register("pixels")
def pixels(argument: str = "") -> FeatureNet:
    """Average-pooled pixels, 8x8 unless another side is given: d = 3 side^2; sees layout and colour, no detail."""
    side = _whole("pixels", argument, 8)

    def network(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, side).flatten(1)

    return FeatureNet(f"pixels:{argument}" if argument else "pixels", network)


@FEATURES.register("clip")
def clip_features(argument: str) -> FeatureNet:
    """Unit-norm image embedding of any `CLIPModel` folder or hub id."""
    clip = load_clip(need_argument("clip", argument, "FOLDER_OR_ID"))
    return FeatureNet(f"clip-{Path(argument).name}", clip.image_features)


def _whole(what: str, argument: str, default: int) -> int:
    if not argument:
        return default
    if not argument.isdecimal() or (what == "pixels" and int(argument) < 1):
        raise FewstepError(f"{what} takes a whole number", value=argument, hint=f"Write {what} or {what}:{default}.")
    return int(argument)
