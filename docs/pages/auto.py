"""The page of `fewstep auto`: fronts beside hand-made grids, as numbers and as pictures."""

from __future__ import annotations

import math
import statistics
from typing import Any

from pages import formats

from fewstep.report.curves import lines


def images() -> dict[str, str]:
    """A picture of the fronts of each model, of the first seed."""
    if not formats.has("auto"):
        return {}
    found: dict[str, str] = {}
    for row in formats.results("auto")["rows"]:
        found.setdefault(f"auto-{row['model']}.svg", _drawn(row))
    return found


def verdict(found: dict[str, Any]) -> str:
    """Whether the front of `auto` dominates or equals the grid's, in words that follow the numbers."""
    rows = found["rows"]
    matched = sum(all(row["grid_points_matched"]) for row in rows)
    larger = sum(row["volume"] > row["grid_volume"] for row in rows)
    return (
        f"The front of `auto` matches every point of the grid in {matched} of {len(rows)} comparisons, and its share "
        f"of the box is larger in {larger}. The pictures show distance over time; bytes are a third cost."
    )


def _drawn(row: dict[str, Any]) -> str:
    """The best distance within a time, of all points and of those that take few bytes."""
    few = statistics.median(point["size"] for point in row["grid"])
    curves = {}
    for limit, within in ((math.inf, ""), (few, f", at most {few / 1e6:.1f} MB")):
        for key, label in (("front", "fewstep auto"), ("grid", "by hand")):
            points = [(p["milliseconds"], p["distance"]) for p in row[key] if p["size"] <= 1.001 * limit]
            curves[label + within] = _best_within(sorted(points))
    return lines(curves, xlabel="milliseconds per picture", ylabel="distance from the reference")


def _best_within(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The points that are nearer than all faster ones."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if not kept or y < kept[-1][1]:
            kept.append((x, y))
    return [x for x, _ in kept], [y for _, y in kept]
