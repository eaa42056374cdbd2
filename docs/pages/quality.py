"""Distances against evaluations, from results/solvers.json, for the pages of single papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pages.formats import listed, shown


def present(model: dict[str, Any], systems: Sequence[str], counts: Sequence[str]) -> list[str]:
    """Those systems that were measured on a model."""
    return [s for s in systems if any(s in model["rows"][n] for n in counts)]


def counted(solvers: dict[str, Any], model: dict[str, Any]) -> list[str]:
    """The numbers of evaluations of a model."""
    return [n for n in map(str, solvers["evaluations"]) if n in model["rows"]]


def quoted(names: Sequence[str]) -> str:
    """Names as code."""
    return ", ".join(f"`{name}`" for name in names)


def first_to_reach(solvers: dict[str, Any], system: str, goal: str, at: str = "20") -> str:
    """From how many evaluations on a system is as near as `goal` is at `at`, model by model."""
    words = []
    for name, model in solvers["models"].items():
        rows = model["rows"]
        wanted = rows.get(at, {}).get(goal, {}).get("distance")
        if wanted is None:
            continue
        reached = [n for n in sorted(map(int, rows)) if _mean(rows[str(n)].get(system)) <= wanted["mean"]]
        words.append(f"{name}: {f'from {reached[0]} evaluations on' if reached else 'at no count'}")
    return "; ".join(words)


def wins(solvers: dict[str, Any], ours: list[str], theirs: list[str]) -> str:
    """Evaluations at which the best of `ours` lies below the best of `theirs` with intervals apart, model by model."""
    words = []
    for name, model in solvers["models"].items():
        won, seen = [], []
        for n in sorted(map(int, model["rows"])):
            rows = model["rows"][str(n)]
            best = [min((rows[s] for s in some if "distance" in rows.get(s, {})), key=_mean, default=None)
                    for some in (ours, theirs)]  # fmt: skip
            if best[0] is None or best[1] is None:
                continue
            seen.append(n)
            if best[0]["distance"]["high"] < best[1]["distance"]["low"]:
                won.append(n)
        words.append(f"{name}: at {listed(won)} of {listed(seen)}")
    return "; ".join(words)


def _mean(row: dict[str, Any] | None) -> float:
    return float("inf") if row is None or "distance" not in row else float(row["distance"]["mean"])


def cell(row: dict[str, Any] | None) -> str:
    """A distance; a dash for none."""
    return "–" if row is None or "distance" not in row else shown(row["distance"])


def title(name: str) -> str:
    """A name as code, unless it is a sentence."""
    return name if " " in name else f"`{name}`"
