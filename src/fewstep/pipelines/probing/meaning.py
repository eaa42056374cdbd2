"""Where a scheduler's states stand, and what its network's outputs mean: asked of the scheduler, not of its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError, nearest
from fewstep.pipelines.probing.unreadable import UnreadableError
from fewstep.plan import Row
from fewstep.plan.combination import is_exactly
from fewstep.prediction import KINDS, Prediction

UNIT = (1, 1, 1, 1)


def level(scheduler: Any, time: Tensor, scale: float) -> tuple[float, float]:
    """(alpha, sigma) at the coming step: what the scheduler's own noising does to (1, 0) and (0, 1).

    scale: what the state is multiplied by before the network. A step that runs the network between two levels (KDPM2)
        is noised to the next one, but scaled by where it stands.

    Raises:
        UnreadableError: the scheduler has no noising.
    """
    one, zero = torch.ones(UNIT, dtype=torch.float64), torch.zeros(UNIT, dtype=torch.float64)
    at = time.reshape(1)
    if hasattr(scheduler, "set_begin_index"):  # asked for by index: a time may stand twice in the schedule
        scheduler.set_begin_index(getattr(scheduler, "begin_index", None) or 0)
    if hasattr(scheduler, "add_noise"):
        alpha, sigma = float(scheduler.add_noise(one, zero, at)), float(scheduler.add_noise(zero, one, at))
    elif hasattr(scheduler, "scale_noise"):
        alpha, sigma = float(scheduler.scale_noise(one, at, zero)), float(scheduler.scale_noise(zero, at, one))
    else:
        raise UnreadableError("it has neither add_noise nor scale_noise, so its noise levels are unknown")
    if alpha == 1 and 0 < scale < 1 and not hasattr(scheduler, "precondition_outputs"):
        scaled = math.sqrt(1 / scale**2 - 1)
        if abs(scaled - sigma) > 0.01 * sigma:
            sigma = scaled
    return alpha, sigma


def input_scale(scheduler: Any, time: Tensor) -> float:
    """What the scheduler multiplies the state by before the network sees it."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(UNIT, dtype=torch.float64), time))


def prediction_of(scheduler: Any) -> Prediction:
    """What the output means of a network that this diffusers scheduler runs (PlanError if unknown)."""
    if hasattr(scheduler, "precondition_outputs"):
        return _preconditioned(scheduler)
    kind = scheduler.config.get("prediction_type")
    if kind == "flow_prediction" or (kind is None and hasattr(scheduler, "scale_noise")):
        return Prediction("velocity")
    if kind not in KINDS:
        raise PlanError("unknown prediction_type in the scheduler", value=kind, hint=nearest(str(kind), KINDS))
    return Prediction(kind)


def _preconditioned(scheduler: Any) -> Prediction:
    """EDM with the deviation and the sign that the scheduler itself applies (v_prediction: the other sign)."""
    like: dict[str, Any] = {"dtype": torch.float64}
    one, zero, sigma = torch.ones(UNIT, **like), torch.zeros(UNIT, **like), torch.tensor(1.0, **like)
    try:
        skip = float(scheduler.precondition_outputs(one, zero, sigma))
        out = float(scheduler.precondition_outputs(zero, one, sigma))
    except Exception as error:
        kind = scheduler.config.get("prediction_type")
        raise PlanError(f"{type(scheduler).__name__} has no EDM preconditioning", value=kind) from error
    deviation = math.sqrt(skip / (1 - skip)) if 0 < skip < 1 else 0.0
    if deviation == 0 or abs(abs(out) - deviation / math.hypot(1, deviation)) > 1e-4:
        raise PlanError(f"{type(scheduler).__name__} does not precondition as EDM does", value=(skip, out))
    return Prediction("edm", sigma_data=round(deviation, 9), sign=math.copysign(1.0, out))


def check_meaning(rows: Sequence[Row], prediction: Prediction) -> None:
    """The first row, which has no history, must make of its output what the prediction says that it is.

    A step from (alpha, sigma) to the next level determines the output's weights on data and noise. Only a wrong sign
    or meaning is refused, since schedulers that add noise, or convert a little late (PNDM), depart by some percents.
    """
    row = rows[0]
    alpha, sigma, scale = (float(value) for value in (row.alpha, row.sigma, row.input_scale))
    claimed = prediction.weights(scale * alpha, scale * sigma)
    state, output = float(row.state.get(0, 0.0)), float(row.output.get(0, 0.0))
    ends = [(float(rows[1].alpha), float(rows[1].sigma))] if len(rows) > 1 else [(1.0, 0.0), (0.0, 1.0)]
    if output == 0:
        return
    found = []
    for data, noise in ends:
        of_data, of_noise = (data - state * alpha) / output, (noise - state * sigma) / output
        found.append((of_data, of_noise if is_exactly(row.noise, 0.0) else claimed[1]))
    if max(_cosine(claimed, one) for one in found) < 0.5:
        raise UnreadableError(
            f"its outputs do not mean {prediction.kind}: its first step takes them for {found[0][0]:.3g} data "
            f"+ {found[0][1]:.3g} noise"
        )


def _cosine(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (one[0] * other[0] + one[1] * other[1]) / max(math.hypot(*one) * math.hypot(*other), 1e-12)
