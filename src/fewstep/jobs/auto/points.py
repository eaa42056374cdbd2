"""Settings, what they cost and how far from the reference they draw; the front of those that nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import FewstepError


@dataclass(frozen=True)
class Point:
    """One setting with its costs.

    Attributes:
        plan: name of its plan.
        steps: network evaluations.
        scheme: of the network, `none` for full precision.
        parts: of text encoders and autoencoder.
        size: bytes of all weights in memory.
        milliseconds: per picture, predicted from the times of single calls.
        distance: from the reference's pictures on the items of the search; 1 is another seed's picture.
    """

    plan: str
    steps: int
    scheme: str
    parts: str
    size: float
    milliseconds: float
    distance: float = float("inf")

    @property
    def name(self) -> str:
        """For tables."""
        parts = "" if self.parts == "none" else f" + text and decoder {self.parts}"
        return f"{self.steps} x {self.scheme}{parts}"

    def costs(self) -> tuple[float, float, float]:
        """All that should be small."""
        return self.size, self.milliseconds, self.distance

    def beats(self, other: Point) -> bool:
        """Whether it is nowhere worse, and somewhere better."""
        pairs = list(zip(self.costs(), other.costs(), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, from the best quality on; the first of equals."""
    kept: list[Point] = []
    for point in points:
        if any(other.beats(point) for other in points) or any(other.costs() == point.costs() for other in kept):
            continue
        kept.append(point)
    return sorted(kept, key=lambda point: (point.distance, point.milliseconds, point.size))


def meeting(points: Sequence[Point], size: float, milliseconds: float) -> list[Point]:
    """The points that meet both budgets.

    Raises:
        FewstepError: none does; the message has the nearest budgets that can be met.
    """
    found = [point for point in points if point.size <= size and point.milliseconds <= milliseconds]
    if found:
        return found
    small = min(points, key=lambda point: point.size)
    fast = min(points, key=lambda point: point.milliseconds)
    nearest = min(points, key=lambda point: max(point.size / size, point.milliseconds / milliseconds))
    asked = [text for text, limit in ((_mb(size), size), (f"{milliseconds:.3g}ms", milliseconds)) if limit < 1e300]
    hint = (
        f"The smallest needs {_mb(small.size)} ({small.name}), the fastest {fast.milliseconds:.3g}ms ({fast.name}); "
        f"nearest to both is {nearest.name} with {_mb(nearest.size)} and {nearest.milliseconds:.3g}ms."
    )
    raise FewstepError("nothing meets the budgets", value=" and ".join(asked), hint=hint)


def knee(points: Sequence[Point]) -> Point:
    """The point of a front nearest to the best of every cost, each scaled to the range of the front."""
    columns = list(zip(*(point.costs() for point in points), strict=True))
    low, width = [min(c) for c in columns], [max(max(c) - min(c), 1e-12) for c in columns]

    def away(point: Point) -> float:
        return sum(((c - a) / w) ** 2 for c, a, w in zip(point.costs(), low, width, strict=True))

    return min(points, key=away)


def _mb(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g}{unit}"
    return f"{size:.0f}B"
