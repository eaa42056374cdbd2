"""Residual shifting: plans of a residual that run on pictures, from a degraded picture to a restored one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fewstep.errors import PlanError
from fewstep.executor import Network, Noise, sample
from fewstep.plan import Plan, Row, RunState
from fewstep.plan.combination import is_exactly, number


def anchored(plan: Plan) -> Plan:
    """A plan of a residual x0 - y as one of the picture, with y in the anchor column.

    With x = y + r, and outputs that mean a x0 + b eps, the row of r_{k+1} = sum_j c_j r_j + sum_j o_j n_j + ... becomes

        x_{k+1} = sum_j c_j x_j + sum_j o_j n_j + (1 - sum_j c_j - sum_j o_j a_j) y + ...

    so any solver's plan on `ResidualShift` serves a network that takes and predicts pictures. Rows in sigma space are
    written in the picture's own scale. The first state is y plus noise: run it with `restored`.

    Raises:
        PlanError: a preconditioned (`edm`) network, rows with a hook, or a plan in sigma space that ends above zero
            noise, where its scale is not known.
    """
    if plan.prediction.kind == "edm" or any(row.hook for row in plan.rows):
        hint = "Use a network that predicts sample, epsilon, v_prediction or velocity, and no clipping."
        raise PlanError("this plan cannot be anchored at a picture", value=plan.prediction.kind, hint=hint)
    scales = [number(row.input_scale) for row in plan.rows]
    if scales != [1.0] * plan.steps and not is_exactly(plan.final_sigma, 0.0):
        raise PlanError("a plan in sigma space must end in clean data", hint="Use a grid without an end.")
    rows = [_anchored(plan, k, scales) for k in range(plan.steps)]
    first = rows[0].sigma
    return plan.replace(rows=tuple(rows), prior_scale=first, origin={**plan.origin, "anchored": True})


def _anchored(plan: Plan, k: int, scales: Sequence[float]) -> Row:
    row, scale = plan.rows[k], scales[k]
    after = scales[k + 1] if k + 1 < plan.steps else 1.0
    state = {j: after * c / scales[j] for j, c in row.state.items()}
    output = {j: after * c for j, c in row.output.items()}
    share = 0.0
    for j, c in output.items():
        past = plan.rows[j]
        share += number(c) * number(plan.prediction.weights(scales[j] * past.alpha, scales[j] * past.sigma)[0])
    return replace(
        row,
        alpha=scale * row.alpha,
        sigma=scale * row.sigma,
        state=state,
        output=output,
        noise=after * row.noise,
        offset=after * row.offset,
        anchor=1.0 - sum(number(c) for c in state.values()) - share,
        input_scale=1.0,
    )


def restored(plan: Plan, network: Network, degraded: Tensor, seeds: Sequence[int]) -> Tensor:
    """Pictures (B, ...) from degraded ones of the same size, by an anchored plan.

    Args:
        plan: made by `anchored`; its first row says how noisy the first state y + sigma z is.
        network: (states (B, ...), network time) -> output; it knows y by itself (see `fewstep.denoiser.Guided`).
        degraded: y (B, ...), on the device and in the arithmetic that the result shall have.
        seeds: one per picture.

    Raises:
        PlanError: not as many seeds as pictures.
    """
    if len(seeds) != len(degraded):
        raise PlanError("one seed per picture is needed", value=(len(seeds), len(degraded)))
    noise = Noise(seeds).draw(degraded.shape[1:]).to(degraded)
    start = RunState({0: degraded + number(plan.prior_scale) * noise}, drawn=1)
    return sample(
        plan,
        network,
        seeds=seeds,
        shape=degraded.shape[1:],
        start=start,
        anchor=degraded,
        device=degraded.device,
        dtype=degraded.dtype,
    )
