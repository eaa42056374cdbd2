"""Weights of jumps: (networks, jump, distances (B,)) -> weighted distances (B,); several are applied in turn."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import levels
from fewstep.distillation.flow_map.jump import Jump
from fewstep.distillation.part import part
from fewstep.errors import FewstepError, nearest

JumpWeight = Callable[[Networks, Jump, Tensor], Tensor]


@part
def jump_length_weight(power: float = 1.0) -> JumpWeight:
    """(t - s)^power in fractions of the range."""

    def weighted(networks: Networks, jump: Jump, distance: Tensor) -> Tensor:
        span = (jump.t - jump.s) / networks.student.process.noisiest
        return distance * (span**power).to(distance)

    return weighted


def inverse_step(networks: Networks, jump: Jump, distance: Tensor) -> Tensor:
    """1 / (t - m), m the end of the first leg, in fractions of the range (iCT, ECT: arXiv 2310.14189, sec. 3.1).

    A first leg of no length has weight 0.

    Raises:
        FewstepError: the jumps have no middle.
    """
    if jump.times.m is None:
        raise FewstepError("this weight needs jumps with a middle", hint="Give the times of the jumps a middle.")
    step = (jump.t - jump.times.m) / networks.student.process.noisiest
    return distance * (1 / step.clamp(min=1e-12)).where(step > 0, 0.0 * step).to(distance)


SNR_KINDS = ("truncated", "plus_one", "clamped", "plain")


@part
def snr_weight(kind: str = "truncated", at: float = 1.0) -> JumpWeight:
    """A function of the signal-to-noise ratio alpha^2 / sigma^2 at t, for distances of clean predictions.

    Args:
        kind: `truncated` max(snr, at), `plus_one` snr + 1 (arXiv 2202.00512, sec. 4), `clamped` min(snr, at), `plain`.
        at: the bound of the first and the third.

    Raises:
        FewstepError: another kind.
    """
    if kind not in SNR_KINDS:
        raise FewstepError("unknown weight of the noise level", value=kind, hint=nearest(kind, SNR_KINDS))

    def weighted(networks: Networks, jump: Jump, distance: Tensor) -> Tensor:
        alpha, sigma = levels(networks.student.process, jump.t)
        snr = (alpha / sigma) ** 2
        if kind == "truncated":
            snr = snr.clamp(min=at)
        elif kind == "clamped":
            snr = snr.clamp(max=at)
        return distance * (snr + (kind == "plus_one")).to(distance)

    return weighted


@part
def adaptive_weight(power: float = 1.0, c: float = 1e-2) -> JumpWeight:
    """1 / (distance + c)^power without gradient: every sample pulls alike (arXiv 2505.13447, sec. 4.3)."""

    def weighted(networks: Networks, jump: Jump, distance: Tensor) -> Tensor:
        return distance / (distance.detach() + c) ** power

    return weighted


def learned_uncertainty(networks: Networks, jump: Jump, distance: Tensor) -> Tensor:
    """exp(phi) distance - phi with a learned phi(t) (arXiv 2312.02696, eq. 21; sCM, eq. 8).

    phi is the student's own head: its network must have `uncertainty(network time (B,)) -> (B,)`.

    Raises:
        FewstepError: the student's network has no such head.
    """
    head = getattr(networks.student.network, "uncertainty", None)
    if head is None:
        hint = "Give its network a method `uncertainty(time)`, or use adaptive_weight."
        raise FewstepError("this weight needs a student that learns its uncertainty", hint=hint)
    phi = head(networks.student.process.network_time(jump.t).to(distance))
    return phi.exp() * distance - phi
