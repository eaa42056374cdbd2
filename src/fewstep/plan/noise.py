"""The same noise at the same times: what plans of different steps share when they are compared seed by seed."""

from __future__ import annotations

from fewstep.plan.combination import is_exactly
from fewstep.plan.plan import Plan


def passed_over(plan: Plan, like: Plan) -> list[int]:
    """How many draws of a sample's stream each row of a plan leaves out, to add the noise of another plan.

    A stream gives one draw to every row that adds noise. A row takes the draw of `like` that leads to the nearest time;
    draws keep their order, none is taken twice, and as many are left as the later rows need. Where `like` has too few
    rows with noise, the last rows take what the stream gives next.

    Args:
        plan: what will run.
        like: whose noise it gets.
    """
    wanted, given = _ends(plan), list(_ends(like).values())
    skips, taken = [0] * plan.steps, -1
    for k, (row, time) in enumerate(wanted.items()):
        last = max(len(given) - (len(wanted) - k), taken + 1)
        best = min(range(taken + 1, last + 1), key=lambda j: abs(given[j] - time) if j < len(given) else 0.0)
        skips[row], taken = best - taken - 1, best
    return skips


def _ends(plan: Plan) -> dict[int, float]:
    """The process time at which each row with noise ends."""
    times = [float(row.time) for row in plan.rows[1:]] + [0.0]
    return {k: times[k] for k, row in enumerate(plan.rows) if not is_exactly(row.noise, 0.0)}
