"""The one engine of every exponential integrator: exact steps for an interpolated estimate.

With lam = log(alpha / sigma), the probability flow from node b to node t is exactly (arXiv 2206.00927,
proposition 3.1, and arXiv 2211.01095, proposition 4.1)

    noise form:  x_t = (alpha_t / alpha_b) x_b - alpha_t Int e^{-l} eps(l) dl,
    data form:   x_t = (sigma_t / sigma_b) x_b + sigma_t Int e^{l}  x0(l)  dl.

Estimates are interpolated by Lagrange polynomials in a variable (lambda, rho = sigma / alpha, or time) through chosen
nodes and integrated by Gauss-Legendre quadrature in float64; everything is differentiable with respect to the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import PlanError, nearest
from fewstep.plan import Combination
from fewstep.solvers.stages import Stages, plain

FORMS = ("noise", "data")
VARIABLES = ("lambda", "rho", "time")
RULES = ("exact", "bh1", "bh2")
"""How two points give a slope: integrated exactly, or with UniPC's B1 = h or B2 = e^h - 1 halved (bh2: midpoint)."""


def choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse an option that is not one of the known values (PlanError)."""
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else f"Choose one of {list(known)}."
        raise PlanError(f"unknown {name}", value=value, hint=hint)


def estimate(s: Stages, form: str, j: int) -> Combination:
    """What the form interpolates: the noise or the data estimate at node j."""
    return s.noise(j) if form == "noise" else s.data(j)


def kept(s: Stages, form: str, base: int, target: int) -> Tensor:
    """The factor of the base state in the exact solution."""
    scale = s.alpha if form == "noise" else s.sigma
    return scale[target] / scale[base]


def usable(s: Stages, form: str, target: int, nodes: Sequence[int], variable: str = "lambda") -> list[int]:
    """The nodes (base first) through which an estimate can be interpolated on the way to `target`.

    At a clean end lambda is infinite, so that only the noise form in rho or time stays beyond first order. A node
    without signal (alpha = 0) is infinitely far in lambda and rho.
    """
    base = nodes[0]
    if _zero(s.alpha[base]) or (_zero(s.sigma[target]) and (form == "data" or variable == "lambda")):
        return [base]
    return [j for j in nodes if variable == "time" or not _zero(s.alpha[j])]


def step(s: Stages, form: str, base: int, target: int, nodes: Sequence[int], **options: Any) -> Combination:
    """The state at `target` from the state at `base` and the estimates at `nodes` (base first); see `weights`."""
    nodes = usable(s, form, target, nodes, options.get("variable", "lambda"))
    if len(nodes) == 1:  # DDIM in every form, and finite where one of the forms is not
        return plain(s.alpha[target]) * s.data(base) + plain(s.sigma[target]) * s.noise(base)
    moved = plain(kept(s, form, base, target)) * s.x(base)
    return moved + weighted(s, form, weights(s, form, base, target, nodes, **options))


def weighted(s: Stages, form: str, weight: dict[int, Tensor]) -> Combination:
    """The sum of the estimates times their weights."""
    total = Combination()
    for j, w in weight.items():
        total = total + plain(w) * estimate(s, form, j)
    return total


def weights(
    s: Stages,
    form: str,
    base: int,
    target: int,
    nodes: Sequence[int],
    *,
    variable: str = "lambda",
    rule: str = "exact",
    speed: float | Tensor = 1.0,
) -> dict[int, Tensor]:
    """Weight of the estimate at each node in the exact solution from `base` to `target`.

    Args:
        variable: what the Lagrange polynomials are polynomials of.
        rule: how two points in lambda give a slope (more points are always integrated exactly).
        speed: 1 + tau^2 of a stochastic data step, whose weight is speed e^{-speed (lam_t - l)}.
    """
    if len(nodes) == 1:
        return {base: _total(s, form, base, target, speed)}
    if len(nodes) == 2 and variable == "lambda" and (rule != "exact" or speed != 1):
        return _two_points(s, form, base, target, nodes, rule, speed)
    points, measure = _quadrature(s, form, base, target, speed)
    tau = _variable(s, variable)
    basis = _lagrange(tau(points), torch.stack([_value(s, variable, j) for j in nodes]))
    return dict(zip(nodes, (measure.unsqueeze(1) * basis).sum(0).unbind(), strict=True))


def _total(s: Stages, form: str, base: int, target: int, speed: float | Tensor) -> Tensor:
    """Weight of a constant estimate; finite at a clean end."""
    h = s.lam(target) - s.lam(base)
    if form == "noise":
        return s.alpha[target] * s.sigma[base] / s.alpha[base] * torch.expm1(-h)
    return -s.alpha[target] * torch.expm1(-speed * h)


def _two_points(
    s: Stages, form: str, base: int, target: int, nodes: Sequence[int], rule: str, speed: float | Tensor
) -> dict[int, Tensor]:
    """A constant and a slope in lambda: closed forms in phi functions (arXiv 2302.04867)."""
    (other,) = (j for j in nodes if j != base)
    h = s.lam(target) - s.lam(base)
    z, scale = (h, -s.sigma[target]) if form == "noise" else (-speed * h, -s.alpha[target])
    slope = {
        "exact": lambda: torch.expm1(z) / z - 1,
        "bh1": lambda: z / 2,
        "bh2": lambda: torch.expm1(z) / 2,
    }[rule]()
    per_node = scale * slope * h / (s.lam(other) - s.lam(base))
    return {base: _total(s, form, base, target, speed) - per_node, other: per_node}


def _quadrature(s: Stages, form: str, base: int, target: int, speed: float | Tensor) -> tuple[Tensor, Tensor]:
    """Points in lambda between base and target, and the measure of the form at them."""
    u, w = _gauss()
    if _zero(s.sigma[target]):  # lambda is infinite: the noise form in rho, down to zero
        rho = s.sigma[base] / s.alpha[base]
        return -(rho * (1 - u)).log(), -s.alpha[target] * rho * w
    end = s.lam(target)
    h = end - s.lam(base)
    points = s.lam(base) + h * u
    if form == "noise":
        return points, -s.sigma[target] * h * w * torch.exp(end - points)
    return points, s.alpha[target] * h * w * speed * torch.exp(-speed * (end - points))


@cache
def _gauss(count: int = 40) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [0, 1]; 40 are exact to rounding up to steps of 6 in lambda."""
    x, w = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def _variable(s: Stages, variable: str) -> Callable[[Tensor], Tensor]:
    """The interpolation variable as a function of lambda."""
    choice("variable", variable, VARIABLES)
    if variable == "rho":
        return lambda lam: torch.exp(-lam)
    return s.process.time if variable == "time" else lambda lam: lam


def _value(s: Stages, variable: str, j: int) -> Tensor:
    if variable == "time":
        return s.time(j)
    return s.sigma[j] / s.alpha[j] if variable == "rho" else s.lam(j)


def _lagrange(x: Tensor, nodes: Tensor) -> Tensor:
    """Lagrange basis polynomials of nodes (p,) at points (n,), as (n, p)."""
    same = torch.eye(len(nodes), dtype=torch.bool)
    gaps = (nodes.unsqueeze(1) - nodes.unsqueeze(0)).masked_fill(same, 1.0)  # [j, m] = tau_j - tau_m
    parts = (x.reshape(-1, 1, 1) - nodes) / gaps
    return parts.masked_fill(same, 1.0).prod(2)


def _zero(value: Tensor) -> bool:
    return bool(value.detach() == 0)
