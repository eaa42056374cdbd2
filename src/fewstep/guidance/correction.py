"""The one mechanism of guidance: a rule corrects the clean prediction, and the network says the corrected one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser

Clean = Callable[[Tensor], Tensor]
"""State (B, ...) -> clean prediction (B, ...) at a fixed noise level; time and conditions are bound."""

Guidance = Callable[[Clean, Tensor, Tensor, Tensor], Tensor]
"""(clean, state x (B, ...), alpha, sigma) -> corrected clean prediction (B, ...).

alpha and sigma multiply x: one number each, or one per sample. A rule calls `clean(x)` itself, because most need its
derivative; it should call it once.
"""


LEAST_SIGNAL = 0.01
"""alpha / sigma below which a rule sees a state as one of this ratio."""


def corrected(denoiser: Denoiser, guidance: Guidance) -> Denoiser:
    """The denoiser whose clean prediction the guidance has corrected.

    Its network takes and gives what that of `denoiser` does, so any plan runs it. Rules are chained by nesting: the
    outer one sees the prediction that the inner one has corrected. Where the clean prediction does not depend on the
    output (no noise is left), nothing is corrected.

    Without signal, where flows begin, the covariance (sigma^2 / alpha) dx0_hat/dx is 0/0, and near it multiplies the
    network's error: states of less than `LEAST_SIGNAL` are asked about as if they had so much.

    Args:
        denoiser: of any prediction; its network may be a `fewstep.denoiser.Guided`.
        guidance: the rule.
    """
    process, prediction = denoiser.process, denoiser.prediction
    latest, least = process.noisiest, math.log(LEAST_SIGNAL)
    latest = process.time(least) if process.lam(latest) < least else latest

    def network(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        time = torch.as_tensor(time)
        t = process.from_network_time(time.double())
        alpha, sigma = process.scales(t, x)
        p, m = prediction.sample(alpha, sigma)
        state = x / prediction.input_scale(alpha, sigma)
        late = t > latest
        seen = torch.where(late, latest, t)
        told = torch.where(late, process.network_time(seen).to(time), time)
        signal, noise = process.scales(seen, x)
        scale, (skip, out) = prediction.input_scale(signal, noise), prediction.sample(signal, noise)

        def clean(at: Tensor) -> Tensor:
            return skip * at + out * denoiser.network(scale * at, told, **condition).to(at)

        found = (guidance(clean, state * (noise / sigma).nan_to_num(1.0), signal, noise) - p * state) / m
        silent = m == 0
        return found if not bool(silent.any()) else torch.where(silent, denoiser.network(x, time, **condition), found)

    return replace(denoiser, network=network)
