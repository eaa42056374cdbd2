"""What 8-bit inputs leave of layers, measured and as their weights say, from results/outliers.json and terrain.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pages.formats import listed

LEAST = 20.0
"""dB below which a layer counts as lost."""
Pair = list[float]
"""What is left in dB: measured, and said by the weights."""
KINDS = {"hadamard": "a rotation", "smooth": "smoothing"}


def lost(pairs: Iterable[Pair]) -> list[Pair]:
    """Those that were measured to be lost."""
    return [pair for pair in pairs if pair[0] < LEAST]


def named(pairs: Iterable[Pair]) -> list[Pair]:
    """Those whose weights say so."""
    return [pair for pair in pairs if pair[1] < LEAST]


def remedies(row: dict[str, Any]) -> str:
    """How many layers got which remedy; before there was a choice, all had 16-bit inputs."""
    if "wide" not in row:
        return f"{row['wide_layers']} of {row['layers']}: 16-bit inputs"
    kinds = Counter(_kind(said) for said in row["wide"].values())
    told = listed([f"{count} {kind}" for kind, count in kinds.most_common()])
    return f"{len(row['wide'])} of {row['layers']}" + (f": {told}" if kinds else "")


def _kind(said: str) -> str:
    scheme = said.partition(":")[0]
    return next((kind for part, kind in KINDS.items() if f"-{part}" in scheme), "16-bit inputs")
