"""The page of `fewstep auto`: fronts beside hand-made grids, as numbers and as pictures."""

from __future__ import annotations

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
    curves = {}
    for key, label in (("front", "fewstep auto"), ("grid", "by hand")):
        points = sorted((point["milliseconds"], point["distance"]) for point in row[key])
        curves[label] = ([x for x, _ in points], [y for _, y in points])
    return lines(curves, xlabel="milliseconds per picture", ylabel="distance from the reference")
