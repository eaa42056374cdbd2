"""One More Step as row 0 of a plan: another network makes the first state from pure noise."""

from __future__ import annotations

import dataclasses
import math

from fewstep.errors import PlanError
from fewstep.plan import Coefficient, Plan, Row
from fewstep.plan.combination import number
from fewstep.prediction import Prediction

NETWORK = "oms"
"""Name of the network of row 0, for `sample(plan, {"main": ..., "oms": ...})`."""


def with_one_more_step(plan: Plan, prediction: str = "v_prediction", eta: float = 1.0) -> Plan:
    """The plan with an extra row 0 that goes from pure noise (no signal at all) to the plan's own first level.

    x_S = alpha_S x0_hat + sqrt(sigma_S^2 - s^2) x_T + s z with s = eta sigma_S and x0_hat from the network "oms"
    (arXiv 2311.15744). alpha_S and sigma_S are those of the first row, whatever spacing or truncation it came from, so
    plans in sigma space (alpha 1, sigma large) work as well; the new row sees noise of unit variance in either.

    Args:
        plan: any plan; its `prior_scale` and `prior_offset` are replaced by the extra row.
        prediction: what the network "oms" returns: `v_prediction` (minus the data, at this level), `sample` or
            `velocity`.
        eta: 1 as published: all noise is fresh. 0 keeps the noise the network has seen.

    Raises:
        PlanError: a prediction that says nothing about the data in pure noise, eta outside [0, 1], or a plan that
            begins in pure noise anyway.
    """
    first = plan.rows[0]
    extra = first_row(number(first.alpha), number(first.sigma), prediction, eta, number(first.time))
    rows = (extra, *(_later(row) for row in plan.rows))
    origin = {**plan.origin, "one_more_step": {"prediction": prediction, "eta": eta}}
    return plan.replace(rows=rows, prior_scale=1.0, prior_offset=0.0, origin=origin)


def first_row(alpha: float, sigma: float, prediction: str = "v_prediction", eta: float = 1.0, time: float = 0.0) -> Row:
    """The row from pure noise of unit variance to the level (alpha, sigma); arguments and errors as above."""
    if prediction not in ("v_prediction", "sample", "velocity"):
        hint = "Train the network to predict v_prediction, sample or velocity."
        raise PlanError("this prediction says nothing about the data in pure noise", value=prediction, hint=hint)
    if not 0 <= eta <= 1:
        raise PlanError("eta must lie in [0, 1]", value=eta, hint="1 is the published choice.")
    if alpha == 0:
        hint = "Run it as it is: One More Step repairs models whose last noise level keeps some signal."
        raise PlanError("the plan begins in pure noise already", value=f"alpha {alpha}", hint=hint)
    p, m = Prediction(prediction).sample(0.0, 1.0)  # x0_hat = p x_T + m n
    fresh = eta * sigma
    kept = math.sqrt(max(0.0, sigma**2 - fresh**2)) + alpha * p
    return Row(
        time=time,
        network_time=0.0,
        alpha=0.0,
        sigma=1.0,
        state={0: kept} if kept else {},
        output={0: alpha * m},
        noise=fresh,
        network=NETWORK,
    )


def _later(row: Row) -> Row:
    """The row with its history counted from one row further on."""

    def moved(table: object) -> dict[int, Coefficient]:
        return {j + 1: c for j, c in dict(table).items()}  # type: ignore[call-overload]

    return dataclasses.replace(row, state=moved(row.state), output=moved(row.output))
