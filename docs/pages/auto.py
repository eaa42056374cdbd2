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


def _drawn(row: dict[str, Any]) -> str:
    curves = {}
    for key, label in (("front", "fewstep auto"), ("grid", "by hand")):
        points = sorted((point["milliseconds"], point["distance"]) for point in row[key])
        curves[label] = ([x for x, _ in points], [y for _, y in points])
    return lines(curves, xlabel="milliseconds per picture", ylabel="distance from the reference")
