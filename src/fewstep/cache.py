"""Keys and values of earlier frames for attention across the parts of a stream, and which of them stay.

Keys are stored as they leave their projection, without their rotary positions: a frame's position is its place among
what attention sees, so that positions do not grow with the length of a stream, and frames can be averaged.

What streaming video models differ in is three numbers, a `CachePolicy`:

    append()                    everything is kept
    drop(window)                a sliding window
    static_sink(window, sink)   the first frames stay (LongLive)
    ema_sink(window, sink)      the first slots become an average of what fell out (Reward Forcing, arXiv 2512.04678)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_tensors


@dataclass(frozen=True)
class CachePolicy:
    """Which earlier frames attention sees.

    Attributes:
        window: frames kept in all, the sink included and the part that is being made not; None: all.
        sink: of them the slots at the beginning that are never dropped.
        alpha: share that a slot of the sink keeps when an evicted frame is averaged into it; 1 leaves it as it was.

    Raises:
        FewstepError: a window without room beside its sink, or a share outside of [0, 1].
    """

    window: int | None = None
    sink: int = 0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.sink < 0 or (self.window is not None and self.window <= self.sink):
            raise FewstepError("a window must be longer than its sink", value=(self.window, self.sink))
        if not 0 <= self.alpha <= 1:
            raise FewstepError("alpha is a share", value=self.alpha, hint="1 is a static sink, 0.99 fades slowly.")


def append() -> CachePolicy:
    """Keep everything: exact, and without bound in memory."""
    return CachePolicy()


def drop(window: int) -> CachePolicy:
    """Keep the last frames alone."""
    return CachePolicy(window)


def static_sink(window: int, sink: int) -> CachePolicy:
    """Keep the first frames of all and the last ones (attention sinks, arXiv 2309.17453; LongLive)."""
    return CachePolicy(window, sink)


def ema_sink(window: int, sink: int, alpha: float = 0.99) -> CachePolicy:
    """As the static sink, whose slots fade: S <- alpha S + (1 - alpha) evicted (Reward Forcing, arXiv 2512.04678)."""
    return CachePolicy(window, sink, alpha)


@dataclass(frozen=True, eq=False)
class Cache:
    """What attention sees of earlier frames.

    Attributes:
        policy: what happens to frames that fall out.
        keys: (layers, B, heads, frames, tokens, dim), without positions.
        values: of the same shape.
        seen: frames that were taken in so far.
    """

    policy: CachePolicy
    keys: Tensor
    values: Tensor
    seen: int = 0

    @property
    def frames(self) -> int:
        """How many frames it holds."""
        return self.keys.shape[3]

    def extended(self, keys: Tensor, values: Tensor) -> Cache:
        """The cache after more frames of the same shapes; what falls out is treated as the policy says.

        Evicted frame number i is averaged into slot i mod sink. Parts as long as the sink, as in the paper, then follow
        its formula; the released code overwrites the sink where the lengths differ, which would forget at once.
        """
        count = keys.shape[3]
        held = (torch.cat([old, new], 3) for old, new in ((self.keys, keys), (self.values, values)))
        surplus = 0 if self.policy.window is None else self.frames + count - self.policy.window
        first = self.seen - self.frames  # number of the frame that is evicted next: those before it are gone
        keys, values = [x if surplus <= 0 else _evicted(x, surplus, first, self.policy) for x in held]
        return Cache(self.policy, keys, values, self.seen + count)

    def rows(self, rows: Tensor) -> Cache:
        """The cache of these samples (b,) alone."""
        return dataclasses.replace(self, keys=self.keys[:, rows], values=self.values[:, rows])

    def check(self) -> None:
        """Refuse what is not finite, which would spoil every later frame (FewstepError)."""
        if not (bool(self.keys.isfinite().all()) and bool(self.values.isfinite().all())):
            raise FewstepError("the cache holds NaN or infinity", hint="Go on from an earlier saved cache.")

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file, atomically."""
        policy = self.policy
        numbers = [-1 if policy.window is None else policy.window, policy.sink, policy.alpha, self.seen]
        about = torch.tensor(numbers, dtype=torch.float64)
        write_tensors(path, {"keys": self.keys.contiguous(), "values": self.values.contiguous(), "about": about})

    @classmethod
    def load(cls, path: str | Path) -> Cache:
        """Read what `save` wrote.

        Raises:
            FewstepError: no such file, another file, or values that are not finite.
        """
        found = read_tensors(path)
        if set(found) != {"keys", "values", "about"} or found["keys"].ndim != 6 or len(found["about"]) != 4:
            raise FewstepError("this file is no cache", value=str(path), hint="Write one with Cache.save.")
        window, sink, alpha, seen = found["about"].tolist()
        policy = CachePolicy(None if window < 0 else int(window), int(sink), alpha)
        cache = cls(policy, found["keys"], found["values"], int(seen))
        cache.check()
        return cache


def _evicted(held: Tensor, surplus: int, first: int, policy: CachePolicy) -> Tensor:
    """What is kept of (layers, B, heads, frames, tokens, dim) when `surplus` frames must go."""
    sink, out, rest = held.split([policy.sink, surplus, held.shape[3] - policy.sink - surplus], 3)
    if policy.sink and policy.alpha < 1:
        slots = list(sink.unbind(3))
        for i, frame in enumerate(out.unbind(3)):
            slot = (first + i) % policy.sink
            slots[slot] = policy.alpha * slots[slot] + (1 - policy.alpha) * frame
        sink = torch.stack(slots, 3)
    return torch.cat([sink, rest], 3)
