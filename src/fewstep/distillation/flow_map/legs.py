"""Legs of a two-leg target: ways to carry states from one time down to another without gradient.

A leg is called with (networks, jump, states x (B, ...), times t and `to` (B,)) and returns the states at `to` and the
forward passes it took. Samples whose leg has no length stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import JumpCoefficients, column, levels
from fewstep.distillation.flow_map.jump import Jump, member
from fewstep.distillation.part import part
from fewstep.errors import FewstepError

Leg = Callable[[Networks, Jump, Tensor, Tensor, Tensor], tuple[Tensor, int]]


@part
def ode_steps(order: int = 1, steps: int = 1, who: str = "teacher") -> Leg:
    """Steps of a model's probability flow, guided as the jump says.

    Args:
        order: 1: DDIM (Euler on a straight path). 2: Heun on the circle (`heun_step`); a step to the data is first
            order.
        steps: sub-steps, equal in time.
        who: `teacher`, or `target` for the student of the previous stage (progressive distillation).

    Raises:
        FewstepError: another order, or no steps.
    """
    if order not in (1, 2) or steps < 1:
        hint = "Use order 1 or 2 and at least one step."
        raise FewstepError("a leg cannot be solved so", value=(order, steps), hint=hint)

    def leg(networks: Networks, jump: Jump, x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, int]:
        model, passes = member(networks, who), 0
        for k in range(steps):
            start, end = (t + (to - t) * (done / steps) for done in (k, k + 1))
            x, used = _ode_step(order, model, jump, x, start, end)
            passes += used
        return x, passes

    return leg


def _ode_step(order: int, model: Denoiser, jump: Jump, x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, int]:
    t, still = departure(t, to)
    clean, passes = jump.teach(model, x, t)
    landed = JumpCoefficients.of(model.process, t, to).express(clean, x, "state")
    if order == 2 and bool((to > 0).any()):
        safe = torch.where(to > 0, to, t)  # a network says nothing about noise where there is none
        there = torch.where(column(to, x) > 0, landed, x)
        again, more = jump.teach(model, there, safe)
        better = heun_step(model, x, clean, there, again, t, safe)
        landed, passes = torch.where(column(to, x) > 0, better, landed), passes + more
    return stay(still, x, landed), passes


def heun_step(model: Denoiser, x: Tensor, clean: Tensor, there: Tensor, again: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """Second-order step from t to `to` from clean predictions at (x, t) and (`there`, `to`).

    On the circle z = x / sqrt(alpha^2 + sigma^2), dz/dphi = v. The velocity at the end is turned back to the start
    before the mean of the two is taken: z' = cos z + sin (v + v') / 2 is exact where data and noise do not
    change on the way.
    """
    (alpha, sigma), (alpha_end, sigma_end) = levels(model.process, t), levels(model.process, to)
    phi, phi_end = torch.atan2(sigma, alpha), torch.atan2(sigma_end, alpha_end)
    radius, radius_end = torch.hypot(alpha, sigma), torch.hypot(alpha_end, sigma_end)

    def col(values: Tensor) -> Tensor:
        return column(values, x)

    first = (col(phi.cos() / radius) * x - clean) / col(phi.sin())
    noise = (col(1 / radius_end) * there - col(phi_end.cos()) * again) / col(phi_end.sin())
    second = col(phi.cos()) * noise - col(phi.sin()) * again
    turn = phi_end - phi
    return col(radius_end) * (col(turn.cos() / radius) * x + col(turn.sin()) * (first + second) / 2)


def same_noise_step(networks: Networks, jump: Jump, x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, int]:
    """alpha x0 + sigma eps with the pair that the state was mixed from: training instead of distillation."""
    alpha, sigma = levels(networks.student.process, to)
    return column(alpha, x) * jump.known("clean") + column(sigma, x) * jump.known("noise"), 0


@part
def student_jump(who: str = "target") -> Leg:
    """One jump of the student itself.

    Args:
        who: `target`, its slow copy (the live one in methods without), or `student`, the live one.
    """

    def leg(networks: Networks, jump: Jump, x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, int]:
        model = member(networks, who)
        t, still = departure(t, to)
        return stay(still, x, jump.land(model, x, jump.ask(model, x, t, to), t, to)), 1

    return leg


def stored_state(networks: Networks, jump: Jump, x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, int]:
    """The stored state at the end of the jump."""
    return jump.known("arrival").to(x), 0


def departure(t: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Times at which a network can be asked: legs of no length, which may lie at time 0, borrow another sample's time.

    Raises:
        FewstepError: a leg goes up in noise.
    """
    if bool((to > t).any()):
        raise FewstepError("a leg must go towards the data", value=float((to - t).max()), hint="Order s <= m <= t.")
    still = t == to
    return torch.where(still & (t == 0), t.max().clamp(min=1e-9), t), still


def stay(still: Tensor, x: Tensor, moved: Tensor) -> Tensor:
    """States that do not move are kept to the last bit."""
    return torch.where(column(still.float(), x) > 0, x, moved)
