"""What a history of numbers says about a training, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

History = Sequence[Mapping[str, float]]


def advice(history: History) -> list[str]:
    """Sentences on what looks wrong; empty where nothing does."""
    return []
