"""Exact steps in Taylor form, row by row: any form, order and way to take the derivatives (arXiv 2312.07243).

A form says what is expanded in lambda around the base of a step: with D_k the k-th derivative of its quantity q,

    x_t = kept x_b + sum_k moments[k] D_k[q] + constant.

Data and noise forms have closed moments (phi functions); the fitted form integrates measured statistics
(arXiv 2310.13268). With all derivatives taken from all points this is `integrals.step` with lambda as variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.plan import Coefficient, Combination
from fewstep.solvers.integrals import estimate, usable
from fewstep.solvers.stages import Stages, Update, plain

Affine = tuple[Combination, Coefficient]
"""A combination of states and outputs, and a constant."""


ExactStep = tuple[Tensor, list[Tensor], Coefficient]
"""The exact step of a form: factor of the base state, weight of each derivative, constant."""


@dataclass(frozen=True)
class ExpansionForm:
    """What is expanded along a step.

    Attributes:
        span: (base, target, order) -> the step between two nodes with `order` moments.
        value: (j, base) -> the expanded quantity at node j, as it is seen from the base of the step.
        noise: (base, target) -> standard deviation of the fresh noise of the step.
    """

    span: Callable[[int, int, int], ExactStep]
    value: Callable[[int, int], Affine]
    noise: Callable[[int, int], Coefficient] = lambda base, target: 0.0


def standard_form(s: Stages, form: str, tau: float = 0.0) -> ExpansionForm:
    """Data or noise form; the data form at noise level `tau` (see `sde_dpm_solver_pp`).

    x_t = (sigma_t / sigma_s) e^{-tau^2 h} x_s + alpha_t g sum_k h^{k+1} phi_{k+1}(-g h) D_k, or noise form.
    """

    def span(base: int, target: int, order: int) -> ExactStep:
        h = s.lam(target) - s.lam(base)
        if form == "noise":
            moments = [-s.sigma[target] * h ** (k + 1) * phi(k + 1, h) for k in range(order)]
            return s.alpha[target] / s.alpha[base], moments, 0.0
        speed = 1 + tau**2
        moments = [s.alpha[target] * speed * h ** (k + 1) * phi(k + 1, -speed * h) for k in range(order)]
        return s.sigma[target] / s.sigma[base] * torch.exp(-(tau**2) * h), moments, 0.0

    def value(j: int, base: int) -> Affine:
        return estimate(s, form, j), 0.0

    def noise(base: int, target: int) -> Coefficient:
        if tau == 0:
            return 0.0
        h = s.lam(target) - s.lam(base)
        return s.sigma[target] * (-torch.expm1(-2 * tau**2 * h)).sqrt()

    return ExpansionForm(span, value, noise)


@dataclass(frozen=True)
class Strategy:
    """How one row is made.

    history: earlier nodes, newest first, at which derivatives may look.
    points: for the derivative k = 1, 2, ... how many of those points it is taken from; its length + 1 is the order.
    corrected: the same for the corrector, whose points are the new node and then `history`; None: no corrector.
    """

    form: ExpansionForm
    history: Sequence[int]
    points: Sequence[int]
    relax: float = 0.0
    corrected: Sequence[int] | None = None


def integrate(s: Stages, strategies: Sequence[Strategy]) -> list[Update]:
    """The updates of rows made by these strategies.

    The corrected state is never made: predicted and corrected states differ by estimates alone, which the next row
    adds. An estimate thereby stays that of the predicted state.
    """
    updates: list[Update] = []
    change: Affine = (Combination(), 0.0)
    for k, strategy in enumerate(strategies):
        here = (s.x(k) + change[0], change[1])
        nodes = usable(s, "data", k + 1, [k, *strategy.history])
        points = [min(m, len(nodes) - 1) for m in strategy.points[: len(nodes) - 1]]
        if bool(s.alpha[k] == 0) or bool(s.sigma[k + 1] == 0):  # DDIM, finite where a form is not
            update, constant = _first_order(s, k, change)
            change = (Combination(), 0.0)
        else:
            factor, moments, left = strategy.form.span(k, k + 1, len(points) + 1)
            predicted = _weights(s, moments, k, nodes, points, strategy.relax)
            rest = _weighted(strategy.form, k, predicted)
            kept = plain(factor)
            update = kept * here[0] + rest[0]
            constant = kept * here[1] + left + rest[1]
            change = _change(s, strategy, k, nodes, predicted)
        updates.append((update, strategy.form.noise(k, k + 1), constant))
    return updates


def phi(k: int, z: Tensor) -> Tensor:
    """phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z with phi_0 = exp; by its series where the recursion cancels."""
    if not z.requires_grad:  # the same on plain floats is twenty times faster
        return torch.tensor(_phi(k, float(z), math.exp), dtype=torch.float64)
    return _phi(k, z, torch.exp)


def _phi(k: int, z: Any, exp: Callable[[Any], Any]) -> Any:
    if abs(z) < 1:
        series = 1.0
        for i in range(18, 0, -1):
            series = 1 + z / (k + i) * series
        return series / math.factorial(k)
    value = exp(z)
    for i in range(k):
        value = (value - 1 / math.factorial(i)) / z
    return value


def _first_order(s: Stages, k: int, change: Affine) -> Affine:
    update = plain(s.alpha[k + 1]) * s.data(k) + plain(s.sigma[k + 1]) * s.noise(k)
    if change[0].output or change[0].state:  # of a corrected state, at the data estimate of the predicted one
        kept = plain(s.sigma[k + 1] / s.sigma[k])
        return update + kept * change[0], kept * change[1]
    return update, 0.0


def _change(s: Stages, strategy: Strategy, k: int, nodes: list[int], predicted: dict[int, Coefficient]) -> Affine:
    """Corrected minus predicted state at node k + 1, as a combination that the next row can read."""
    if strategy.corrected is None:
        return Combination(), 0.0
    around = [k, k + 1, *nodes[1:]]
    points = [min(m, len(around) - 1) for m in strategy.corrected[: len(around) - 1]]
    _, moments, _ = strategy.form.span(k, k + 1, len(points) + 1)
    corrected = _weights(s, moments, k, around, points)
    return _weighted(strategy.form, k, {j: w - predicted[j] if j in predicted else w for j, w in corrected.items()})


def _weights(
    s: Stages, moments: Sequence[Tensor], base: int, nodes: Sequence[int], points: Sequence[int], relax: float = 0.0
) -> dict[int, Coefficient]:
    """Weight of the quantity at each node (base first), derivative k being taken from the next `points[k - 1]` nodes.

    D_k = sum_j c_j (q_j - q_base) with sum_j c_j (lam_j - lam_base)^i / i! = delta_ik for i = 1..points[k - 1].
    """
    weight: dict[int, Any] = {base: plain(moments[0])}
    if not points:
        return weight
    start = plain(s.lam(base))
    h = plain(s.lam(base + 1)) - start
    places = [(plain(s.lam(j)) - start) / h for j in nodes[1:]]
    inverses = {count: _inverse(places[:count]) for count in {*points}}
    for k, (moment, count) in enumerate(zip(moments[1:], points, strict=False), start=1):
        scale = plain(moment) / h**k * (1 + relax * h if k == 1 else 1.0)
        for i, j in enumerate(nodes[1 : count + 1]):
            part = scale * inverses[count][i][k - 1]
            weight[j] = weight[j] + part if j in weight else part
            weight[base] = weight[base] - part
    return weight


def _inverse(places: Sequence[Coefficient]) -> Any:
    """The inverse of the matrix places[j]^i / i! with rows i = 1, 2, ...; plain numbers where nothing is learned."""
    if not any(isinstance(p, Tensor) for p in places):
        powers: Any = [[p**i / math.factorial(i) for p in places] for i in range(1, len(places) + 1)]
        return np.linalg.inv(powers).tolist()
    row = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in places])
    return torch.linalg.inv(torch.stack([row**i / math.factorial(i) for i in range(1, len(places) + 1)]))


def _weighted(form: ExpansionForm, base: int, weight: dict[int, Coefficient]) -> Affine:
    total = Combination()
    constant: Coefficient = 0.0
    for j, w in weight.items():
        combination, offset = form.value(j, base)
        total = total + plain(w) * combination
        if isinstance(offset, Tensor):
            constant = constant + w * offset
    return total, constant
