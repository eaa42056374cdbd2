"""What the numbers say of USF and S3."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, listed, ratio, than

SYSTEMS = {
    "ddim": "DDIM, best usual grid",
    "uniform": "best uniform solver and grid",
    "times": "times searched, one strategy",
    "everything, random": "times and strategies, random search",
    "everything, no predictor": "times and strategies, evolution",
    "everything": "times and strategies, S3 (evolution with predictor)",
    "everything with v3": "the same with v3's form as a third choice",
}


def verdict(rows: dict[str, Any]) -> str:
    """On fresh noise: strategies against times, and both against uniform solvers; and what the shift leaves."""
    compared = (
        ("strategies beside times", "everything", "times"),
        ("strategies and times against the best uniform solver", "everything", "uniform"),
        ("times alone against the best uniform solver", "times", "uniform"),
    )
    lines = []
    for words, ours, theirs in compared:
        said = []
        for n, systems in rows.items():
            a, b = systems[ours]["fresh"], systems[theirs]["fresh"]
            said.append(f"{n}: {a['mean'] / b['mean'] - 1:+.0%} ({than(a, b, 'better', 'worse')})")
        lines.append(f"- {words}: {'; '.join(said)}")
    holds = [n for n, s in rows.items() if s["everything"]["shifted"]["mean"] < s["uniform"]["shifted"]["mean"]]
    return (
        f"Error on fresh noise, by evaluations. {PAIRED}\n\n"
        + "\n".join(lines)
        + (
            f"\n\nOn the shifted mixture the searched schedule is below the best uniform solver at {listed(holds)} of "
            f"{listed(rows)} evaluations:\na schedule belongs to the model it was searched on."
        )
    )


def verdict_predictor(results: dict[str, Any]) -> str:
    """S3's final error over the others', over all runs."""
    words = []
    for name, title in (("everything, random", "random search"), ("everything, no predictor", "evolution alone")):
        ours, theirs = (
            [value for systems in results["rows"].values() for value in systems[k]["search"]["values"]]
            for k in ("everything", name)
        )
        words.append(f"S3 over {title}: {ratio(ours, theirs)}")
    runs = len(results["rows"]) * results["seeds"]
    return f"Ratio of final errors, geometric mean over {runs} runs with its 95 % interval: {'; '.join(words)}."
