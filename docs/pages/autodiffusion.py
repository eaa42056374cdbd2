"""What the numbers say of AutoDiffusion."""

from __future__ import annotations

from typing import Any

from pages.formats import PAIRED, apart, listed, ratio

NEAR = 0.05
"""A searched error within so much of the least possible counts as found."""


def verdict_gaussian(rows: dict[str, Any]) -> str:
    words = []
    for n, r in rows.items():
        over = [v / r["optimum"] - 1 for v in r["evolution"]["values"]]
        found = sum(o <= NEAR for o in over)
        words.append(f"{n} evaluations: {found} of {len(over)} seeds (the worst {max(over):+.1%})")
    return f"Evolution comes within {NEAR:.0%} of the least error: {'; '.join(words)}."


def verdict_mixture(rows: dict[str, Any]) -> str:
    entries = [(n, solver, entry) for n, solvers in rows.items() for solver, entry in solvers.items()]
    better = [1 for _, _, e in entries if e["evolution"]["fresh"]["mean"] < e["random"]["fresh"]["mean"]]
    clear = [1 for _, _, e in entries if apart(e["evolution"]["fresh"], e["random"]["fresh"]) < 0]
    usual = [1 for _, _, e in entries if apart(e["evolution"]["fresh"], e["usual"]["fresh"]) < 0]
    solver = [
        n for n, s in rows.items() if s["order 3"]["usual"]["fresh"]["mean"] < s["DDIM"]["evolution"]["fresh"]["mean"]
    ]
    pairs = [[v for _, _, e in entries for v in e[k]["search"]["values"]] for k in ("evolution", "random")]
    return (
        f"- Evolution has the smaller mean than random search in {len(better)} of {len(entries)} settings, told "
        f"apart in {len(clear)}; it beats the best usual grid in {len(usual)}. {PAIRED} Ratio of "
        f"their errors on the search's own items, geometric mean over all runs: {ratio(*pairs)}.\n"
        f"- A third-order solver on a usual grid beats DDIM on searched times at {listed(solver)} of {listed(rows)} "
        "evaluations: the solver comes first, times second."
    )


def skipping(systems: dict[str, Any]) -> int:
    """How many of the best schedules skip a block."""
    return sum(any(s["skipped"]) for s in systems["times and blocks"]["schedules"])
