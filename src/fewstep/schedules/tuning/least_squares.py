"""The closed-form reference for Q-Sched: each quantized step as close as it gets to full precision."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import Plan


def least_squares(plan: Plan, states: Tensor, quantized: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """Per step the (s, m) that minimise E || s a x + m b q - (a x + b F) ||^2 (2x2 normal equations, float64).

    It needs the full-precision network, and it minimises error, not distance in distribution: it shrinks variance.
    With multistep rows a and b are the row's coefficients of its own state and output. Scales are not negative: outputs
    that point away from full precision are left out (m = 0), and a warning names the row.

    Args:
        plan: the plan both networks follow.
        states: x along the quantized trajectory, (K, B, ...).
        quantized: q, the quantized outputs there; full: F, the full-precision ones; same shape.

    Returns:
        sample_scale (K,), output_scale (K,), float64.

    Raises:
        PlanError: shapes do not fit the plan.
    """
    if not (len(states) == plan.steps and states.shape == quantized.shape == full.shape):
        shapes = (tuple(states.shape), tuple(quantized.shape), tuple(full.shape))
        raise PlanError(f"traces must have {plan.steps} rows and one shape", value=shapes)
    scales = []
    for k, row in enumerate(plan.rows):
        x = states[k].double().flatten() * float(row.state.get(k, 0.0))
        b = float(row.output.get(k, 0.0))
        q, target = b * quantized[k].double().flatten(), x + b * full[k].double().flatten()
        basis = torch.stack([x, q], 1)
        # lstsq with a minimum-norm solution about the identity: a missing column keeps its 1
        change = torch.linalg.lstsq(basis, (target - x - q).unsqueeze(1), driver="gelsd").solution.squeeze(1)
        scale = 1.0 + change
        if bool((scale < 0).any()):
            from scipy.optimize import nnls

            fitted = torch.from_numpy(nnls(basis.numpy(), target.numpy())[0])
            scale = torch.where(basis.any(0), fitted, 1.0)
            what = f"least squares in row {k} would turn the sign of a state or output; held at {scale.tolist()}"
            warnings.warn(f"{what}. Use more bits.", stacklevel=2)
        scales.append(scale)
    both = torch.stack(scales)
    return both[:, 0], both[:, 1]
