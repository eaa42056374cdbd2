"""What the benchmarks of restoration say in tables and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pages.formats import apart, table

KEYS = ("psnr", "ssim", "feature_distance", "frechet", "sharpness", "inconsistency")
HEADS = ("PSNR", "SSIM", "feature distance", "Fréchet", "sharpness", "inconsistency")
DIGITS = {"psnr": 2}


def cell(entry: Any, key: str) -> str:
    """A number; where there are several seeds, with half of the interval over them."""
    digits = DIGITS.get(key, 3)
    if not isinstance(entry, dict):
        return f"{entry:.{digits}f}"
    half = f" ± {(entry['high'] - entry['low']) / 2:.{digits}f}" if "high" in entry else ""
    return f"{entry['mean']:.{digits}f}{half}"


def systems(found: dict[str, Any], names: Sequence[str], keys: Sequence[str] = KEYS) -> str:
    """A row for each system."""
    heads = [dict(zip(KEYS, HEADS, strict=True))[key] for key in keys]
    return table(["", *heads], [[name, *(cell(found[name][key], key) for key in keys)] for name in names])


def starting(found: dict[str, Any], *beginnings: str) -> list[str]:
    """The systems whose name is one of these, alone or with a number of steps behind it."""
    return [name for start in beginnings for name in found if name == start or name.rpartition(", ")[0] == start]


def verdicts(found: dict[str, Any], ours: str, theirs: str, keys: Sequence[str] = KEYS[:5]) -> str:
    """Which of two systems has the higher value of each number, beyond the interval of the difference over seeds."""
    words = {-1: "lower", 0: "not told apart", 1: "higher"}
    names = dict(zip(KEYS, HEADS, strict=True))
    return "; ".join(f"{names[key]} {words[apart(found[ours][key], found[theirs][key])]}" for key in keys)


def curve(points: dict[str, float]) -> str:
    """Updates and errors along a training."""
    return ", ".join(f"{step}: {value:.2f}" for step, value in points.items())


def excess(stage: dict[str, Any]) -> list[list[str]]:
    """Excess errors of both arms along the training."""
    return [[name, *(f"{entry['mean']:.2g}" for entry in points)] for name, points in stage["excess"].items()]
