"""RePaint: jumps back to noisier states, as rows of the plan."""

from __future__ import annotations

from dataclasses import replace

from fewstep.errors import PlanError
from fewstep.plan import Plan, Row
from fewstep.plan.combination import number


def with_jumps(plan: Plan, length: int = 10, repeats: int = 10) -> Plan:
    """The plan that goes each `length` rows `repeats` times, adding noise to return (RePaint, arXiv 2201.09865).

    A row that ends at node b and returns to node a is one row: with c = alpha_a / alpha_b it makes

        c x_b + sqrt(sigma_a^2 - c^2 sigma_b^2) z

    of the x_b that the plan's own row makes, both noises drawn as one. With the rule `ddnm` for a mask and an ancestral
    plan (`ddim` with eta 1) this is RePaint: known pixels follow the process of the picture. Published: length and
    repeats 10 at 250 steps.

    Args:
        plan: of a solver that reads the last state and output alone.
        length: rows from one return to the next; the last ones may be fewer.
        repeats: how often they are gone; 1 leaves the plan as it is.

    Raises:
        PlanError: a plan with a memory or with hooks, or counts below 1.
    """
    if length < 1 or repeats < 1:
        raise PlanError("jumps need a length and repeats of at least 1", value=(length, repeats))
    for k, row in enumerate(plan.rows):
        if {*row.state, *row.output} - {k} or row.hook:
            hint = "Use ddim, or another solver of one step."
            raise PlanError(f"row {k} reads earlier ones, which a jump makes older", value=str(row), hint=hint)
    rows: list[Row] = []
    for start in range(0, plan.steps, length):
        end = min(start + length, plan.steps)
        for again in range(repeats, 0, -1):
            for k in range(start, end):
                row = _returning(plan, k, start) if k == end - 1 and again > 1 else plan.rows[k]
                place = len(rows)
                rows.append(
                    replace(
                        row,
                        state={j - k + place: c for j, c in row.state.items()},
                        output={j - k + place: c for j, c in row.output.items()},
                    )
                )
    return plan.replace(rows=tuple(rows), origin={**plan.origin, "jump_length": length, "jump_repeats": repeats})


def _returning(plan: Plan, k: int, back: int) -> Row:
    """Row k, and from its end back to the noise level of row `back`."""
    row, before = plan.rows[k], plan.rows[back]
    last = k + 1 == plan.steps
    alpha, sigma = (plan.final_alpha, plan.final_sigma) if last else (plan.rows[k + 1].alpha, plan.rows[k + 1].sigma)
    c = number(before.alpha) / number(alpha)
    added = max(number(before.sigma) ** 2 - (c * number(sigma)) ** 2, 0.0)
    return replace(
        row,
        state={j: c * value for j, value in row.state.items()},
        output={j: c * value for j, value in row.output.items()},
        anchor=c * row.anchor,
        offset=c * row.offset,
        noise=((c * number(row.noise)) ** 2 + added) ** 0.5,
    )
