"""Tables of distance against evaluations for a few systems, from results/solvers.json: for pages of single papers."""

from __future__ import annotations

from typing import Any

from formats import listed, shown, table

MEASURE = """\
Root mean square distance from the same network's fine trajectory, over the standard deviation of the results;
held-out noise, ± half of the 95 % interval over seeds; every solver on the best of the usual grids
(`docs/systems/solvers.md`)."""
ABSENT = "`results/solvers.json` is not there: `python benchmarks/solvers.py` writes it.\n"


def distances(solvers: dict[str, Any], systems: list[str]) -> str:
    """One table per model: distance from the fine trajectory, systems by evaluations."""
    parts = []
    for name, model in solvers["models"].items():
        counts = [n for n in map(str, solvers["evaluations"]) if n in model["rows"]]
        there = [s for s in systems if any(s in model["rows"][n] for n in counts)]
        rows = [[_title(s), *(_cell(model["rows"][n].get(s)) for n in counts)] for s in there]
        parts.append(f"**{name}** ({model['about']})\n\n" + table(["system", *counts], rows))
    return "\n\n".join(parts)


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


def _cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None or "distance" not in row else shown(row["distance"])


def _title(name: str) -> str:
    return name if " " in name else f"`{name}`"
