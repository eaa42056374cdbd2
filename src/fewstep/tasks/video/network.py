"""A small video transformer over latent frames: bidirectional within a part, causal across parts through a cache."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.cache import Cache, CachePolicy
from fewstep.errors import FewstepError

BASE = 100.0
"""Of the rotary frequencies: longest wave about 600 positions."""


@dataclass(frozen=True)
class VideoConfig:
    """Sizes of a `VideoTransformer`.

    Attributes:
        channels: of a latent frame.
        side: of a latent frame.
        patch: side of a token.
        width: of a token's vector.
        layers: blocks.
        heads: of attention; width / heads must divide by 4.
        labels: number of values of each part of the prompt; one further value of each means "any".
    """

    channels: int = 2
    side: int = 16
    patch: int = 4
    width: int = 128
    layers: int = 4
    heads: int = 4
    labels: tuple[int, ...] = (10, 10, 3)

    def __post_init__(self) -> None:
        if self.side % self.patch or self.width % (4 * self.heads):
            raise FewstepError("sizes of a video network do not divide", value=dataclasses.astuple(self))

    @property
    def tokens(self) -> int:
        """Of a latent frame."""
        return (self.side // self.patch) ** 2

    @property
    def any_prompt(self) -> tuple[int, ...]:
        """The prompt that asks for nothing: the negative one of guidance."""
        return self.labels


class VideoTransformer(nn.Module):
    """Latent frames (B, F, C, H, W) at network times () or (B,) or (B, F), with prompts (B, parts), to a raw output.

    Without a cache all frames see each other (the bidirectional teacher) unless `mask` says otherwise; with one they
    also see what it holds. Rotary positions are applied at attention time: frames of the cache come first.

    Raises:
        FewstepError: frames of another shape than the configuration's.
    """

    angles: Tensor

    def __init__(self, config: VideoConfig | None = None) -> None:
        super().__init__()
        self.config = config = VideoConfig() if config is None else config
        width, size = config.width, config.channels * config.patch**2
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, size)
        self.place = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.labels = nn.ModuleList(nn.Embedding(count + 1, width) for count in config.labels)
        self.moment = nn.Sequential(nn.Linear(2 * _WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm, self.final = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2 * width)
        for layer in (self.last, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("angles", _angles(config), persistent=False)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        prompt: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Raw output (B, F, C, H, W).

        Args:
            x: frames.
            time: network time in [0, 1000].
            prompt: whole numbers (B, parts).
            cache: what is seen of earlier frames.
            mask: (F, F), which frame (row) sees which; without a cache.
            positions: of the frames (F,); those after the cache unless given.
        """
        return self._run(x, time, prompt, cache, mask, positions)[0]

    @torch.no_grad()
    def remember(self, x: Tensor, time: Tensor, prompt: Tensor, cache: Cache) -> Cache:
        """The cache after these frames, which are run once more (clean, or at the time of the context's noise)."""
        _, keys, values = self._run(x, time, prompt, cache)
        return cache.extended(keys.to(cache.keys), values.to(cache.values))

    def empty_cache(self, policy: CachePolicy, size: int) -> Cache:
        """A cache without frames for `size` samples."""
        config = self.config
        shape = (config.layers, size, config.heads, 0, config.tokens, config.width // config.heads)
        return Cache(policy, self.place.new_empty(shape), self.place.new_empty(shape))

    def _run(
        self,
        x: Tensor,
        time: Tensor,
        prompt: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Raw output, and keys and values (layers, B, heads, F, tokens, dim) of the frames."""
        config, before = self.config, 0 if cache is None else cache.frames
        if x.ndim != 5 or x.shape[2:] != (config.channels, config.side, config.side):
            wanted = ("B", "frames", config.channels, config.side, config.side)
            raise FewstepError(f"video frames must be {wanted}", value=tuple(x.shape))
        size, frames = x.shape[:2]
        where = before + torch.arange(frames, device=x.device) if positions is None else positions
        seen = torch.cat([torch.arange(before, device=x.device), where])
        turns = self._turns(where), self._turns(seen)
        visible = None if mask is None else mask.repeat_interleave(config.tokens, 0).repeat_interleave(config.tokens, 1)
        given = self._given(time, prompt, size, frames)
        hidden = self.first(_patches(x, config.patch)) + self.place
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            old = None if cache is None or not before else (cache.keys[layer], cache.values[layer])
            hidden, key, value = block(hidden, given, turns, old, visible)
            keys.append(key)
            values.append(value)
        shift, scale = self.final(F.silu(given))[:, :, None].chunk(2, -1)
        raw = self.last(self.norm(hidden) * (1 + scale) + shift)
        return _picture(raw, config), torch.stack(keys), torch.stack(values)

    def _given(self, time: Tensor, prompt: Tensor, size: int, frames: int) -> Tensor:
        """What the frames are told (B, F, width): their time and the prompt."""
        time = time.reshape(-1, 1) if time.ndim < 2 else time
        told = self.moment(_waves(time.to(self.place.dtype) / 1000).expand(size, frames, -1))
        labels = sum(table(prompt[:, part]) for part, table in enumerate(self.labels))
        return told + torch.as_tensor(labels)[:, None]

    def _turns(self, frames: Tensor) -> Tensor:
        """Rotary angles (frames * tokens, dim / 2)."""
        time, row, column = self.angles
        tokens = torch.arange(self.config.tokens, device=frames.device)
        grid = self.config.side // self.config.patch
        flat = (tokens // grid)[:, None] * row + (tokens % grid)[:, None] * column
        return (frames[:, None, None] * time + flat).flatten(0, 1)


Turns = tuple[Tensor, Tensor]
"""Rotary angles of queries and of keys."""


class _Block(nn.Module):
    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qk_norms = nn.ModuleList(nn.RMSNorm(width // config.heads) for _ in range(2))
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.told = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(
        self, hidden: Tensor, given: Tensor, turns: Turns, old: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate, low, high, door = self.told(F.silu(given))[:, :, None].chunk(6, -1)
        size, frames, tokens, width = hidden.shape
        mixed = self.into(self.norms[0](hidden) * (1 + scale) + shift)
        apart = mixed.unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)  # (3, B, heads, F, tokens, dim)
        query, key, value = self.qk_norms[0](apart[0]), self.qk_norms[1](apart[1]), apart[2]
        keys, values = key, value
        if old is not None:
            keys, values = torch.cat([old[0], key], 2), torch.cat([old[1], value], 2)
        seen = F.scaled_dot_product_attention(
            _turned(query.flatten(2, 3), turns[0]), _turned(keys.flatten(2, 3), turns[1]), values.flatten(2, 3), mask
        )
        hidden = hidden + gate * self.out(seen.transpose(1, 2).reshape(size, frames, tokens, width))
        inner = F.gelu(self.up(self.norms[1](hidden) * (1 + high) + low), approximate="tanh")
        return hidden + door * self.down(inner), key, value


def chunk_mask(frames: int, chunk: int, window: int | None = None, sink: int = 0) -> Tensor:
    """Which frame sees which (F, F): its own chunk, and of those before it the sink and the last frames.

    Args:
        frames: F.
        chunk: frames that see each other in both directions.
        window: earlier frames that are seen, the sink among them; None: all.
        sink: of them the first frames of all.
    """
    number = torch.arange(frames)
    begin = number // chunk * chunk
    end = begin + chunk
    inside = number[None] < end[:, None]
    if window is None:
        return inside
    near = number[None] >= (begin - (window - sink))[:, None]
    full = begin <= window  # nothing has fallen out yet
    return inside & (near | (number < sink)[None] | full[:, None])


_WAVES = 16


def _waves(t: Tensor) -> Tensor:
    angle = t[..., None] * (math.pi * 2.0 ** torch.linspace(-1, 7, _WAVES, device=t.device, dtype=t.dtype))
    return torch.cat([angle.sin(), angle.cos()], -1)


def _angles(config: VideoConfig) -> Tensor:
    """Frequencies (3, dim / 2) of time, rows and columns: half of them, a quarter and a quarter."""
    half = config.width // config.heads // 2
    parts = (half - 2 * (half // 4), half // 4, half // 4)
    found, start = torch.zeros(3, half), 0
    for axis, count in enumerate(parts):
        found[axis, start : start + count] = BASE ** -(torch.arange(count) / count)
        start += count
    return found


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of numbers (B, heads, tokens, dim) turned by angles (tokens, dim / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _patches(x: Tensor, patch: int) -> Tensor:
    """Frames (B, F, C, H, W) to tokens (B, F, tokens, C patch^2)."""
    apart = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # (B, F, C, h, p, w, q)
    return apart.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def _picture(tokens: Tensor, config: VideoConfig) -> Tensor:
    grid, patch = config.side // config.patch, config.patch
    apart = tokens.unflatten(3, (config.channels, patch, patch)).unflatten(2, (grid, grid))
    return apart.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)
