"""What held of the editing systems, from results/editing.json and results/ageing.json."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pages.formats import than

ORDER = ("full", "no identity question", "matching alone", "judge alone")


def said(results: dict[str, Any]) -> str:
    """Whether the published ordering of the ablations holds, pair by pair, and what else is compared."""
    arms = results["arms"]
    pairs = [*pairwise(ORDER), ("full", "SDEdit, 4 steps"), ("full", "SDEdit, 50 steps"),
             ("full", "grpo"), ("full", "supervised pairs"), ("full", "full, in W4A8")]  # fmt: skip
    lines = [f"- {a} against {b}: {_compared(arms[a]['score'], arms[b]['score'])}" for a, b in pairs]
    return "By the harmonic mean, paired by seed:\n\n" + "\n".join(lines)


def aged(results: dict[str, Any]) -> str:
    """Whether start by need and pass 2 gain, each alone and both."""
    arms = {name: arm["all"]["score"] for name, arm in results["arms"].items()}
    both = "pass 1 by need, pass 2"
    others = ["pass 1 at 0.5", "pass 1 by need", "pass 1 at 0.5, pass 2", "pass 1 at 0.75, pass 2",
              "pass 1 by need, pass 2 without reweighting", "pass 1 by need, the caption again"]  # fmt: skip
    lines = [f"- {both} against {b}: {_compared(arms[both], arms[b])}" for b in others]
    lines.append(f"- pass 1 by need against pass 1 at 0.5: {_compared(arms['pass 1 by need'], arms['pass 1 at 0.5'])}")
    return "By the score of all edits, paired by seed:\n\n" + "\n".join(lines)


def _compared(a: dict[str, Any], b: dict[str, Any]) -> str:
    values = f"{a['mean']:.2f} against {b['mean']:.2f}"
    if len(a["values"]) != len(b["values"]) or len(a["values"]) < 2:
        return values
    return f"{values}, {than(a, b, 'worse', 'better')}"
