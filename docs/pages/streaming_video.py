"""What the numbers of results/video.json say about cache policies and training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SHOWN = ("dynamic_end", "agreement_end", "frechet_end", "drift", "copying", "seam", "flicker")
BASE = "self-forcing"


def rows(found: dict[str, Any], frames: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arms that were drawn at this length."""
    return ((name, by_length[frames]) for name, by_length in found.items() if frames in by_length)


def premise(found: dict[str, Any]) -> tuple[bool, str]:
    """Whether the static sink freezes: at the last length its last segments move less than without a sink."""
    frames = max(found[f"{BASE} | drop"], key=int)
    difference = found[f"{BASE} | drop"][frames]["less"]["dynamic_end"]
    copied = found[f"{BASE} | drop"][frames]["less"]["copying"]
    freezes = difference["low"] > 0
    return freezes, (
        f"In the last segment of {frames} frames a sliding window without sink moves {signed(difference)} more than "
        f"one with a static sink, and its frames resemble the first one by {signed(copied)} more."
    )


def verdict(found: dict[str, Any], policy: str) -> str:
    """The EMA sink against the static one, given the premise."""
    freezes, words = premise(found)
    frames = max(found[f"{BASE} | {policy}"], key=int)
    less = found[f"{BASE} | {policy}"][frames]["less"]
    moves, drifts = less["dynamic_end"], less["drift"]
    numbers = f"{policy} minus static sink at {frames} frames: motion {signed(moves)}, drift {signed(drifts)}."
    if not freezes:
        return f"**Cannot be shown here**: the static sink does not freeze. {words} {numbers}"
    if moves["low"] > 0 and drifts["low"] <= 0:
        return f"**Holds**. {words} {numbers}"
    return f"**Does not hold**. {words} {numbers}"


def compared(found: dict[str, Any], arm: str, name: str) -> str:
    """An arm against Self-Forcing with the same cache, length by length."""
    lines = [
        f"{frames} frames {signed(entry['less'][name])}" for frames, entry in found[arm].items() if "less" in entry
    ]
    return "; ".join(lines)


def re_dmd(found: dict[str, Any]) -> str:
    """Whether both seeds move more than Self-Forcing at the last length, and what it cost."""
    arms = [found[f"Re-DMD{seed} | EMA sink 0.99"] for seed in ("", ", seed 1")]
    last = [by_length[max(by_length, key=int)]["less"] for by_length in arms]
    if all(less["dynamic_end"]["low"] > 0 for less in last):
        return "**Yes** in both seeds."
    moved = " and ".join(signed(less["dynamic_end"]) for less in last)
    return f"**Not here**: motion in the last segment {moved} in the two seeds."


def accvideo(found: dict[str, Any]) -> str:
    """Whether five trained steps keep the motion of fifty, and five untrained ones lose it."""
    lost, kept = (found[name]["24"]["less"] for name in ("teacher, 5 steps", "AccVideo, 5 steps"))
    share = abs(kept["dynamic"]["mean"]) / abs(lost["dynamic"]["mean"])
    said = "with agreement a little lower" if kept["agreement"]["high"] < 0 else "at equal agreement"
    return f"Five trained steps lose {share:.0%} of the motion that five untrained ones lose, {said}."


def signed(entry: dict[str, float]) -> str:
    """A difference with its interval."""
    return f"{entry['mean']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f})"
