"""Cells, sentences and drawings of the page of solvers, from results/solvers.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pages.formats import results

from fewstep.report.curves import lines

GROUPS = {"diffusers": "best of diffusers", "fewstep": "best solver", "search": "searched"}


def images() -> dict[str, str]:
    """Best of each group by evaluations, one drawing per model."""
    drawn = {}
    for name, model in results("solvers")["models"].items():
        curves = {}
        for group, label in GROUPS.items():
            found = [(int(n), e["best"][group]["distance"]) for n, e in model["summary"].items() if group in e["best"]]
            curves[label] = ([n for n, _ in found], [d for _, d in found])
        drawn[f"solvers-{name}.svg"] = lines(
            curves, xlabel="network evaluations", ylabel="distance from the teacher", log_x=True, log_y=True
        )
    return drawn


def best(entry: dict[str, Any], group: str) -> str:
    """Distance and name of the best of a group."""
    found = entry["best"].get(group)
    return "–" if found is None else f"{found['distance']:.4f} ({name(found['name'])})"


def change(entry: dict[str, Any]) -> str:
    """The paired difference of the search to diffusers."""
    found = entry.get("search - diffusers")
    return "–" if found is None else f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def systems(model: dict[str, Any], metric: str, evaluations: Sequence[int]) -> list[str]:
    """Every system with this metric, ours first."""
    names = {name for n in evaluations for name, row in model["rows"][str(n)].items() if metric in row}
    return sorted(names, key=lambda n: (n.startswith("diffusers"), n.startswith("search"), n))


def verdicts(results: dict[str, Any]) -> str:
    """The two targets, in words that follow the numbers."""
    lines = []
    for name, model in results["models"].items():
        entries = {int(n): e for n, e in model["summary"].items()}
        tried = {n: e["search - diffusers"] for n, e in entries.items() if "search - diffusers" in e and 5 <= n <= 10}
        won = [n for n, d in tried.items() if d["high"] < 0]
        ratio = [entries[n]["best"]["diffusers"]["distance"] / entries[n]["best"]["search"]["distance"] for n in tried]
        lines.append(
            f"- **{name}**: at 5 to 10 evaluations the searched plan is nearer to the teacher than the best of "
            f"diffusers, outside the interval, at {_list(won)} of {_list(sorted(tried))} evaluations "
            f"({min(ratio):.1f} to {max(ratio):.1f} times nearer). {_twenty(model)}"
        )
    return "\n".join(lines)


def _twenty(model: dict[str, Any]) -> str:
    """Whether eight evaluations reach what diffusers' best reaches at twenty, by both measures."""
    rows = model["rows"]
    goal = model["summary"]["20"]["best"]["diffusers"]["distance"]
    short = {int(n): e["best"]["search"] for n, e in model["summary"].items() if "search" in e["best"] and int(n) <= 8}
    nearest = min(short, key=lambda n: short[n]["distance"])
    reached = short[nearest]["distance"] <= goal
    theirs = min(r["frechet"]["mean"] for n, r in rows["20"].items() if r["group"] == "diffusers")
    ours = rows["8"][short[8]["name"]][
        "frechet"
    ]  # fewer evaluations had more items: no comparison of Fréchet distances
    met, alike = ("met" if reached else "missed"), ("reaches" if ours["low"] <= theirs else "does not reach")
    return (
        f"Diffusers' best at 20 evaluations is at {goal:.4f}; the searches' best with at most 8 is at "
        f"{short[nearest]['distance']:.4f} ({nearest} evaluations), so the target is {met} by distance. The Fréchet "
        f"distance of diffusers' best at 20 is {theirs:.3f}; the searched plan at 8 ({ours['mean']:.3f}) {alike} it "
        "within its interval."
    )


def cell(entry: Any) -> str:
    """Mean and half of the interval; a dash for none."""
    if entry is None:
        return "–"
    digits = 4 if abs(entry["mean"]) < 1 else 2
    return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}"


def name(known: str) -> str:
    """As it stands in tables."""
    return known.removeprefix("search: ") if known.startswith("search") else f"`{known}`" if " " not in known else known


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values)) if values else "none"


def seeds(model: dict[str, Any]) -> int:
    """Of the held-out noise."""
    return int(next(iter(next(iter(model["rows"].values())).values()))["seeds"])
