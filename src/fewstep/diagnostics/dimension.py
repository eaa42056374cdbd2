"""How many directions the data have locally, read from a network's Jacobian.

Two estimates (arXiv 2402.03845 and work around it). The denoiser's Jacobian dD/dx = alpha^2 Cov[x0 | x] / sigma^2 is a
projection onto the tangent directions where noise is small against curvature, so its trace D - sigma div(eps) is their
number. And along the probability flow, x / alpha keeps its tangent directions while the others shrink like
rho = sigma / alpha: the singular values of the flow's Jacobian have slopes 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.diagnostics.field import noise_field, noisy
from fewstep.diagnostics.flow import flow
from fewstep.errors import FewstepError
from fewstep.jacobian import jacobian, jacobian_trace


def trace_dimension(
    denoiser: Denoiser,
    data: Tensor,
    t: float,
    *,
    probes: int = 8,
    generator: torch.Generator | None = None,
    method: str = "auto",
) -> Tensor:
    """D - sigma div(eps) per sample (B,) at process time `t`, on noisy states of the data (B, ...).

    Meaningful where sigma is small against curvature and large against the network's error: look for the `plateau` over
    noise levels. Divides by nothing, but the error of the divergence counts D directions at once.
    """
    x = noisy(denoiser.process, data, t, generator)
    divergence = jacobian_trace(noise_field(denoiser, t), x, probes, generator, method=method).detach()
    return x[0].numel() - denoiser.process.sigma(t) * divergence.double()


def plateau(rho: Sequence[float], values: Sequence[float], least: float = 0.5) -> int:
    """Index where `values` change least over log rho, among inner points of at least `least` (pure noise has 0).

    Raises:
        FewstepError: fewer than three points, or none of them reaches `least`.
    """
    if len(rho) != len(values) or len(rho) < 3:
        raise FewstepError("a plateau needs three noise levels and their values", value=(len(rho), len(values)))
    slopes = {
        k: abs((values[k + 1] - values[k - 1]) / math.log(rho[k + 1] / rho[k - 1]))
        for k in range(1, len(rho) - 1)
        if values[k] >= least
    }
    if not slopes:
        raise FewstepError("no noise level has a dimension", value=max(values), hint="Look at smaller noise.")
    return min(slopes, key=lambda k: slopes[k])


@dataclass(frozen=True, eq=False)
class FlowDimension:
    """Singular values of the flow's Jacobian along the way.

    rho: (L,) noise levels, falling. singular: (L, B, D) of x / alpha, largest first. slopes: (B, D), of log s over
    log rho on the last level. dimension: (B,) number of slopes below one half.
    """

    rho: Tensor
    singular: Tensor
    slopes: Tensor
    dimension: Tensor


def flow_dimension(denoiser: Denoiser, x: Tensor, rho: Sequence[float], steps: int = 4) -> FlowDimension:
    """Local dimension where the flow carries the states, from the whole Jacobian of the flow: for small D.

    Args:
        x: states (B, ...) of the process at noise level rho[0].
        rho: at least two falling levels of sigma / alpha; the slopes are those of the last pair.
        steps: Runge-Kutta steps per level, each 4 D evaluations.

    Raises:
        FewstepError: levels that do not fall, or too many dimensions for whole Jacobians.
    """
    if len(rho) < 2 or any(b >= a for a, b in pairwise(rho)) or rho[-1] <= 0:
        raise FewstepError("levels of noise must fall, at least two, above 0", value=list(rho))
    process = denoiser.process
    first = process.time(-math.log(rho[0]))
    y, size = (x / process.alpha(first)).detach(), x[0].numel()
    carried = torch.eye(size, dtype=torch.float64).expand(len(x), -1, -1)
    singular = [torch.ones(len(x), size, dtype=torch.float64)]
    for above, below in pairwise(rho):

        def step(state: Tensor, above: float = above, below: float = below) -> Tensor:
            return flow(denoiser, state, (1.0, above), (1.0, below), steps)

        with torch.no_grad():
            carried = jacobian(step, y).double().cpu() @ carried
            y = step(y)
        singular.append(torch.linalg.svdvals(carried))
    logs = torch.stack(singular).clamp(min=1e-300).log()
    slopes = (logs[-2] - logs[-1]) / math.log(rho[-2] / rho[-1])
    return FlowDimension(
        torch.tensor(list(rho), dtype=torch.float64), torch.stack(singular), slopes, (slopes < 0.5).sum(1)
    )
