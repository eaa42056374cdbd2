"""From pictures to videos from several sides: an image network with attention over frames and over views added."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError, nearest


@dataclass
class _Clip:
    """How the pictures of the running call belong together: (B V F) in this order, with masks (B, V, 1, H, W)."""

    views: int = 1
    frames: int = 1
    mask: Tensor | None = None


class ViewFrameAttention(nn.Module):
    """After a layer of the image network: attention over all views of a frame, then over the frames of a view.

    The part's mask scales and shifts the features before frames are compared (FiLM). Both attentions end in a layer of
    zeros and are added, so that at the start nothing changes (arXiv 2502.07278; numbers of views and frames are those
    of the call).

    Args:
        channels: of the layer's output.
        heads: of attention.
        views: whether views are compared; all pixels of all views meet, which pays at low resolution.
    """

    def __init__(self, channels: int, heads: int = 4, views: bool = True) -> None:
        super().__init__()
        self.mask_net = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
        )
        self.over_views = _Attention(channels, heads) if views else None
        self.over_frames = _Attention(channels, heads)
        self.clip = _Clip()

    def forward(self, hidden: Tensor) -> Tensor:
        """Pictures' features (B V F, C, H, W) to the same."""
        V, n, (_, C, H, W) = self.clip.views, self.clip.frames, hidden.shape
        h = hidden.unflatten(0, (-1, V, n))
        if self.over_views is not None:
            tokens = h.permute(0, 2, 1, 4, 5, 3).reshape(-1, V * H * W, C)
            told = self.over_views(tokens).reshape(-1, n, V, H, W, C)
            h = h + told.permute(0, 2, 1, 5, 3, 4)
        tokens = self._masked(h).permute(0, 1, 4, 5, 2, 3).reshape(-1, n, C)
        told = self.over_frames(tokens).reshape(-1, V, H, W, n, C)
        return (h + told.permute(0, 1, 4, 5, 2, 3)).flatten(0, 2)

    def _masked(self, h: Tensor) -> Tensor:
        mask = self.clip.mask
        if mask is None:
            return h
        small = F.interpolate(mask.flatten(0, 1), size=h.shape[-2:], mode="area")
        small = (small - small.mean((1, 2, 3), keepdim=True)) / (small.std((1, 2, 3), keepdim=True) + 1e-2)
        scale, shift = self.mask_net(small).unflatten(0, mask.shape[:2]).unsqueeze(2).chunk(2, 3)
        return h * (1 + scale) + shift


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.into = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.into(self.norm(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Followed(nn.Module):
    """A layer and the attention behind it."""

    def __init__(self, layer: nn.Module, added: ViewFrameAttention) -> None:
        super().__init__()
        self.layer, self.added = layer, added

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.added(self.layer(*args, **kwargs))


class InflatedNetwork(nn.Module):
    """An image network on clips (B, V, F, C, H, W), whose pictures know of each other; see `inflate`."""

    def __init__(self, network: nn.Module, layers: Sequence[str], heads: int, across: Sequence[str]) -> None:
        super().__init__()
        self.image = copy.deepcopy(network)
        self.layers = tuple(layers)
        for name in layers:
            inner = self.image.get_submodule(name)
            added = ViewFrameAttention(_channels(inner, name), heads, views=name in across)
            self.image.set_submodule(name, _Followed(inner, added))

    @property
    def added(self) -> list[ViewFrameAttention]:
        """The new attentions."""
        return [module for module in self.image.modules() if isinstance(module, ViewFrameAttention)]

    def forward(self, clips: Tensor, time: Tensor, mask: Tensor | None = None, **given: Tensor) -> Tensor:
        """Raw output of the shape of the clips that the image network gives.

        Args:
            clips: (B, V, F, C, H, W).
            time: (B,), one for all pictures of a clip.
            mask: the part at rest, (B, V, 1, H, W).
            given: further arguments (B, ...) of the image network, repeated for the pictures.
        """
        _, V, n = clips.shape[:3]
        for added in self.added:
            added.clip.views, added.clip.frames, added.clip.mask = V, n, mask
        repeated = {name: value.repeat_interleave(V * n, 0) for name, value in given.items()}
        try:
            said = self.image(clips.flatten(0, 2), time.expand(len(clips)).repeat_interleave(V * n), **repeated)
        finally:
            for added in self.added:
                added.clip.mask = None
        return (said if isinstance(said, Tensor) else said[0]).unflatten(0, clips.shape[:3])


def inflate(
    network: nn.Module, layers: Sequence[str], *, heads: int = 4, across: Sequence[str] | None = None
) -> InflatedNetwork:
    """A copy of an image network that takes clips (B, V, F, C, H, W); at first it draws every picture as before.

    Args:
        network: (pictures (N, C, H, W), times (N,), **conditions) -> pictures, or a tuple or output that begins with
            them, as diffusers' UNets do.
        layers: names of the layers that attention follows, such as `mid_block.resnets.1`; their output is (N, C, H, W).
        heads: of attention.
        across: those of them where views are compared too; all unless given.

    Raises:
        FewstepError: the network has no such layer, or one whose channels cannot be told.
    """
    names = [name for name, _ in network.named_modules()]
    for name in (*layers, *(across or ())):
        if name not in names:
            raise FewstepError("the network has no such layer", value=name, hint=nearest(name, names))
    return InflatedNetwork(network, layers, heads, layers if across is None else across)


def train_only(network: InflatedNetwork, endings: Sequence[str] = (), added: bool = True) -> list[nn.Parameter]:
    """Freeze all but the new attention and parameters whose names end so; returns what is trained.

    Args:
        network: the inflated one.
        endings: of names, such as `to_q.weight`.
        added: whether the new layers are trained as a whole; a warning names those that the endings leave out, which
            would keep their random beginning.
    """
    new = {id(p) for module in network.added for p in module.parameters()}
    chosen, left = [], []
    for name, parameter in network.named_parameters():
        wanted = (added and id(parameter) in new) or any(name.endswith(ending) for ending in endings)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(parameter)
        elif id(parameter) in new:
            left.append(name)
    if left:
        warnings.warn(f"new layers stay as they began: {', '.join(left[:4])} ({len(left)} in all)", stacklevel=2)
    return chosen


def _channels(layer: nn.Module, name: str) -> int:
    for attribute in ("out_channels", "channels"):
        found = getattr(layer, attribute, None)
        if isinstance(found, int):
            return found
    raise FewstepError("the channels of this layer cannot be told", value=name, hint="Choose a ResNet block.")
