"""What the numbers say of AutoDiffusion."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, apart, listed, ratio, than

NEAR = 0.05
"""A searched error within so much of the least possible counts as found."""
SYSTEMS = {
    "uniform": "equal steps in time",
    "best usual": "best usual grid",
    "times, random": "times, random search",
    "times": "times, evolution",
    "one step more, blocks by rank": "one step more, least harmful blocks skipped",
    "times and blocks": "times and skipped blocks, evolution from there",
}


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


def verdict_digits(digits: dict[str, Any]) -> str:
    lines = []
    for n, systems in digits["rows"].items():
        both, times, usual = (systems[k]["distance"] for k in ("times and blocks", "times", "best usual"))
        skipping = sum(any(s["skipped"]) for s in systems["times and blocks"]["schedules"])
        harm = systems["harm"]
        lines.append(
            f"- {n} evaluations: searched times against the best usual grid: {than(times, usual, 'nearer', 'farther')} "
            f"({times['mean'] / usual['mean'] - 1:+.0%}); skipping beside times: "
            f"{than(both, times, 'nearer', 'farther')} ({both['mean'] / times['mean'] - 1:+.0%}); {skipping} of "
            f"{len(systems['times']['schedules'])} best schedules skip anything. One block of {int(n) + 1} steps left "
            f"out alone takes the distance on the search's items from {harm['full']:.4f} to {harm['least']:.4f} at "
            f"least, {harm['median']:.4f} in the median"
        )
    return "\n".join(lines)
