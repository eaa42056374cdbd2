"""The discriminator: where its features come from, and small heads on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.part import part
from fewstep.distillation.taps import features
from fewstep.errors import FewstepError, nearest

FeatureSource = Callable[[Networks, Batch, Tensor, Tensor], Mapping[str, Tensor]]
"""(networks, batch, states (B, ...), times (B,)) -> named features (B, ...) that the discriminator looks at."""


@dataclass(frozen=True)
class NetworkFeatures:
    """Outputs of named modules of the critic (DMD2) or the teacher (LADD).

    Attributes:
        who: `critic` or `teacher`.
        modules: names of the modules.
        early: leave the network after the last of them.
    """

    who: str = "critic"
    modules: tuple[str, ...] = ("mid_block",)
    early: bool = True

    def __call__(self, networks: Networks, batch: Batch, x: Tensor, t: Tensor) -> Mapping[str, Tensor]:
        """Features by module name."""
        return features(networks.need(self.who), self.modules, x, t, batch.condition, self.early)


@part
def encoder_features(
    encode: Callable[[Tensor], Mapping[str, Tensor]], decode: Callable[[Tensor], Tensor] | None = None
) -> FeatureSource:
    """A frozen network outside (DINO, SAM, a classifier) on clean samples.

    Args:
        encode: pixels (B, ...) -> named features. It must let the gradient through to the pixels.
        decode: latents (B, ...) -> pixels; samples are pixels unless given.
    """

    def features(networks: Networks, batch: Batch, x: Tensor, t: Tensor) -> Mapping[str, Tensor]:
        return encode(x if decode is None else decode(x))

    return features


def samples(networks: Networks, batch: Batch, x: Tensor, t: Tensor) -> Mapping[str, Tensor]:
    """The samples themselves, as one vector each: for data of few dimensions."""
    return {"samples": x.flatten(1)}


class Discriminator(nn.Module):
    """Heads on named features; logits (B, L), high for real.

    `level` is where the ratio weights of f-distill keep the mean density ratio of each tenth of the time range.
    """

    level: Tensor

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name.replace(".", "/"): head for name, head in heads.items()})
        self.register_buffer("level", torch.ones(10, dtype=torch.float64))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits of all heads side by side."""
        return torch.cat([head(features[name.replace("/", ".")]) for name, head in self.heads.items()], 1)


class PointHead(nn.Module):
    """The same small network at every position of a map (B, C, H, W), of tokens (B, N, C) or of a vector (B, C)."""

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        layers = (nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, positions)."""
        return self.net(as_tokens(feature).to(next(self.parameters()).dtype)).squeeze(2)


class ConvHead(nn.Module):
    """Strided convolutions on a map (B, C, H, W), pooled to one logit (the head of arXiv 2507.18569)."""

    def __init__(self, channels: int, hidden: int = 256, layers: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for width in ([channels] + [hidden] * (layers - 1))[:layers]:
            stages += [nn.Conv2d(width, hidden, 4, 2, 1), nn.GroupNorm(min(32, hidden), hidden), nn.SiLU()]
        self.net = nn.Sequential(*stages, nn.Conv2d(hidden if layers else channels, hidden, 3, 1, 1))
        self.out = nn.Linear(hidden, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, 1)."""
        return self.out(self.net(feature).mean((2, 3)))


class MeanHead(nn.Module):
    """No weights of its own: the mean over channels at each position, or over positions of each channel (SiDA)."""

    def __init__(self, over: str = "channels") -> None:
        super().__init__()
        self.axis = {"channels": 2, "positions": 1}[over]

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, positions) or (B, channels)."""
        return as_tokens(feature).mean(self.axis)


def as_tokens(feature: Tensor) -> Tensor:
    """A feature as (B, positions, channels)."""
    if feature.ndim > 3:
        return feature.flatten(2).transpose(1, 2)
    return feature if feature.ndim == 3 else feature.unsqueeze(1)


HEADS = ("point", "conv", "mean")


@part
def discriminator_heads(
    source: FeatureSource,
    kind: str = "point",
    hidden: int = 128,
    over: str = "channels",
    channels: Mapping[str, int] | None = None,
    count: int = 0,
) -> Callable[[Networks, tuple[int, ...]], nn.Module]:
    """Makes the discriminator for a source: the `make` of `fewstep.distillation.method.Adversary`.

    Args:
        source: of the features that the heads see.
        kind: `point`, `conv`, or `mean` (which needs no look at the features when `channels` are known).
        hidden: width of a head.
        over: what a `mean` is over.
        channels: of each feature by name; None: found by one call on zeros without conditions.
        count: so many discriminators, a list of modules, such as one per key state (AccVideo); 0: one alone.

    Raises:
        FewstepError: another kind; when called: the source needs conditions, and the channels are not given.
    """
    if kind not in HEADS:
        raise FewstepError("unknown head", value=kind, hint=nearest(kind, HEADS))

    def head(width: int, side: int = 8) -> nn.Module:
        if kind == "mean":
            return MeanHead(over)
        if kind == "point":
            return PointHead(width, hidden)
        return ConvHead(width, hidden, layers=min(3, side.bit_length() - 1))  # each halves the side

    def one(networks: Networks, shape: tuple[int, ...]) -> nn.Module:
        if channels is not None:
            return Discriminator({name: head(width) for name, width in channels.items()})
        found = _features_of_zeros(source, networks, shape)
        return Discriminator({n: head(as_tokens(f).shape[2], min(f.shape[2:], default=1)) for n, f in found.items()})

    def make(networks: Networks, shape: tuple[int, ...]) -> nn.Module:
        return nn.ModuleList([one(networks, shape) for _ in range(count)]) if count else one(networks, shape)

    return make


@torch.no_grad()
def _features_of_zeros(source: FeatureSource, networks: Networks, shape: tuple[int, ...]) -> Mapping[str, Tensor]:
    t = torch.full((2,), 0.5 * networks.student.process.noisiest, dtype=torch.float64)
    networks = networks.following(torch.zeros(2, dtype=torch.long))
    try:
        return source(networks, Batch(2, shape), torch.zeros(2, *shape), t)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        hint = "Give `channels`: the number of channels of each feature by name."
        raise FewstepError(f"the features could not be looked at ({error})", hint=hint) from error
