"""Sentences and tables of the decision pages: which way to fewer steps, which bits."""

from __future__ import annotations

from typing import Any

from pages.formats import listed, shown, table

from fewstep.distillation.method import method
from fewstep.process import RectifiedFlow

NEAR = 0.02
"""Nearer than so much of the results' deviation to the fine trajectory is near enough for most uses."""


def teacher(solvers: dict[str, Any]) -> int:
    """Evaluations of the fine trajectory."""
    return int(next(iter(solvers["models"].values()))["teacher"])


def calibration(solvers: dict[str, Any]) -> str:
    """How many items searches saw."""
    return listed(sorted({model["calibration"] for model in solvers["models"].values()}))


def named(best: dict[str, Any] | None) -> str:
    """Distance and name of the best of a group."""
    if best is None:
        return "–"
    name = best["name"].removeprefix("search: ").removeprefix("diffusers ")
    return f"{best['distance']:.3f} ({name})"


def at(solvers: dict[str, Any], group: str, count: str) -> str:
    """The best distance of a group at a number of evaluations, model by model."""
    best = {name: model["summary"][count]["best"][group]["distance"] for name, model in solvers["models"].items()}
    return ", ".join(f"{distance:.3f} ({name})" for name, distance in best.items())


def nearest(digits: dict[str, Any], count: int) -> str:
    """The nearest student of so many steps."""
    rows = [row for row in digits["rows"] if row["steps"] == count and row["summary"]]
    best = min(rows, key=lambda row: float(row["summary"][""]["frechet"]["mean"]))
    return f"{best['summary']['']['frechet']['mean']:.2f} (`{best['method']}`)"


def beside(digits: dict[str, Any], count: int) -> str:
    """The teacher in so many steps."""
    return f"{digits['references'][f'guidance 1, {count} steps']['frechet']:.2f}"


def nearer(solvers: dict[str, Any]) -> str:
    """By which factors searches win at 5 to 10 evaluations."""
    best = [e["best"] for m in solvers["models"].values() for n, e in m["summary"].items() if 5 <= int(n) <= 10]
    found = [b["diffusers"]["distance"] / b["search"]["distance"] for b in best if "search" in b]
    return f"{min(found):.1f} to {max(found):.1f}"


def enough(solvers: dict[str, Any]) -> int:
    """From how many evaluations on diffusers' best is near on every model."""
    counts = sorted({int(n) for m in solvers["models"].values() for n in m["summary"]})
    return next(n for n in counts if all(_diffusers(m, n) < NEAR for m in solvers["models"].values()))


def late(solvers: dict[str, Any]) -> str:
    """What diffusers' best reaches at 20 evaluations."""
    words = [f"{_diffusers(model, 20):.3f} on {name}" for name, model in solvers["models"].items()]
    return f"At 20, diffusers' best solver stands at {listed(words)}: hardly anything is left to win."


def _diffusers(model: dict[str, Any], n: int) -> float:
    return float(model["summary"][str(n)]["best"]["diffusers"]["distance"])


def advice(found: dict[str, Any]) -> str:
    """The nearest methods by number of steps and by what they learn from."""
    kinds = {"conditions alone": set[str](), "real data": {"data"}, "stored trajectories": {"data", "store"}}
    lines = []
    for count in sorted({row["steps"] for row in found["rows"]}):
        beside = found["references"][f"guidance 1, {count} steps"]["frechet"]
        lines.append([count, f"{beside:.2f}", *(_nearest(found, count, needs) for needs in kinds.values())])
    return table(["steps", "teacher", *kinds], lines)


def _nearest(found: dict[str, Any], count: int, has: set[str]) -> str:
    """The best of the methods that need no more, with those whose interval reaches its mean."""
    rows = [row for row in found["rows"] if row["steps"] == count and row["summary"]]
    fit = [row for row in rows if method(row["method"], RectifiedFlow()).needs - {"guidance"} <= has]
    fit.sort(key=lambda row: float(row["summary"][""]["frechet"]["mean"]))
    if not fit:
        return ""
    best = fit[0]["summary"][""]["frechet"]
    told = [f"`{fit[0]['method']}` {shown(best, 2)} ({fit[0]['passes_per_update']:.0f} passes)"]
    alike = [row for row in fit[1:] if row["summary"][""]["frechet"]["low"] <= best["high"]]
    return ", ".join([*told, *(f"`{row['method']}`" for row in alike[:3])])
