"""Analytic first step: the first network call replaced by a formula, by algebra on any plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Coefficient, Plan, Row
from fewstep.plan.combination import is_exactly, number
from fewstep.prediction import Prediction
from fewstep.solvers.integrals import choice

KINDS = ("zero", "gaussian", "mean")


def analytic_first_step(
    plan: Plan, kind: str = "zero", *, data_std: float = 1.0, mean: Coefficient | None = None
) -> Plan:
    """The plan with its first network call replaced by what data of a simple law would give: one call fewer.

    At the noisiest time a network says little more than that law (AFS: arXiv 2206.00364's solvers in arXiv 2312.00094,
    "average" in arXiv 2312.07243). The estimates are linear in the first state, so row 0 becomes part of the prior:
    x_0 = (x_1 - c) / A in the rows that still read it.

    Args:
        kind: `zero`, x0 = 0 (eps = x / sigma); `gaussian`, data N(mean, data_std^2); `mean`, x0 = mean.
        data_std: standard deviation of the data, for `gaussian`.
        mean: a number or a tensor that broadcasts on one sample; needed by `mean`, 0 for `gaussian` if left out.

    Raises:
        PlanError: a plan of one row, a first row that is stochastic, treated by a hook, or reads an anchor or a tensor
            scale; a first step that forgets its state while later rows read it; a mean that is missing.
    """
    choice("kind", kind, KINDS)
    if kind == "mean" and mean is None:
        raise PlanError('kind="mean" needs the mean of the data', hint="Pass mean=, a number or a tensor.")
    if kind == "gaussian" and not data_std > 0:
        raise PlanError("data_std must be positive", value=data_std, hint='Use kind="mean" for a single point.')
    _refuse(plan)
    first = plan.rows[0]
    center: Coefficient = 0.0 if kind == "zero" or mean is None else mean
    u, v = _output_of_law(first, plan.prediction, data_std if kind == "gaussian" else 0.0, center)
    A = _get(first.state, 0) + _get(first.output, 0) * u
    c = first.offset + _get(first.output, 0) * v
    if isinstance(A, Tensor) and A.numel() != 1:
        raise PlanError("the first row has one scale per element", value=tuple(A.shape), hint="Scale the plan later.")
    reads = any(0 in table for row in plan.rows[1:] for table in (row.state, row.output))
    if reads and number(A) == 0:
        raise PlanError("the first step forgets the state that later rows read", hint="Use a multistep order of 1.")
    rows = tuple(_without_first(row, A, c, u, v) for row in plan.rows[1:])
    scale = A if number(A) >= 0 else -A  # where the step turns the state round: noise and its mirror have one law
    settings = {"first_step": kind} | ({"data_std": data_std} if kind == "gaussian" else {})
    return plan.replace(
        rows=rows,
        prior_scale=scale * plan.prior_scale,
        prior_offset=A * plan.prior_offset + c,
        origin={**plan.origin, **settings},
    )


def _output_of_law(row: Row, prediction: Prediction, std: float, mean: Coefficient) -> tuple[Coefficient, Coefficient]:
    """u and v with raw output u x + v, for data N(mean, std^2): x0 = mean + gain (x - alpha mean)."""
    alpha, sigma = row.alpha, row.sigma
    if not isinstance(sigma, Tensor) and sigma == 0:
        raise PlanError("the first row stands at clean data", hint="Start the grid at a noisy time.")
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    slope, rest = gain, (1 - gain * alpha) * mean
    a, b = prediction.weights(row.input_scale * alpha, row.input_scale * sigma)
    # eps = (x - alpha x0) / sigma
    return a * slope + b * (1 - alpha * slope) / sigma, (a - b * alpha / sigma) * rest


def _without_first(row: Row, A: Coefficient, c: Coefficient, u: Coefficient, v: Coefficient) -> Row:
    """A later row in which x_0 and n_0 are written in x_1, and every index is one less."""
    of_state, of_output = _get(row.state, 0), _get(row.output, 0)
    tables: dict[str, Any] = {
        kind: {j - 1: value for j, value in getattr(row, kind).items() if j} for kind in ("state", "output")
    }
    if 0 not in row.state and 0 not in row.output:
        return dataclasses.replace(row, **tables)
    share = (of_state + of_output * u) / A  # of x_1, since x_0 = (x_1 - c) / A
    tables["state"][0] = _get(tables["state"], 0) + share
    return dataclasses.replace(row, **tables, offset=row.offset + of_output * v - share * c)


def _refuse(plan: Plan) -> None:
    row = plan.rows[0]
    reasons = {
        "the plan has a single row": len(plan.rows) == 1,
        "the first row adds noise": not is_exactly(row.noise, 0.0),
        "the first row reads an anchor": not is_exactly(row.anchor, 0.0),
        "the first row treats its output": row.hook is not None,
    }
    for reason, found in reasons.items():
        if found:
            raise PlanError(f"{reason}: its network call cannot be replaced", hint="Build the plan without that.")


def _get(table: Any, j: int) -> Coefficient:
    value: Coefficient = table.get(j, 0.0)
    return value if not isinstance(value, Tensor) else value.to(torch.float64)
