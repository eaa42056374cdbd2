"""Derivatives of a student's clean prediction along a direction in (state, start, end): exact or by differences.

Both run without gradient and outside of autocast: differences of bfloat16 outputs are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.distillation.flow_map.frame import column
from fewstep.errors import FewstepError, nearest
from fewstep.jacobian import plain_attention
from fewstep.process import Process

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(states (B, ...), t (B,), s (B,)) -> clean prediction (B, ...)."""

HOW = ("jvp", "difference")


@dataclass(frozen=True)
class TimeDerivative:
    """How to differentiate.

    Attributes:
        how: `jvp`: forward mode, about two passes, plain attention. `difference`: two more passes, any network.
        delta: half the width of a central difference, radians of the angle atan2(sigma, alpha), so that one number
            suits every process; one-sided at the ends. 5e-3 balances truncation against rounding in float32.
    """

    how: str = "jvp"
    delta: float = 5e-3

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise FewstepError("unknown way to differentiate", value=self.how, hint=nearest(self.how, HOW))
        if not 0 < self.delta < 0.5:
            raise FewstepError("the width of a difference lies in (0, 0.5)", value=self.delta, hint="Use 5e-3.")

    def along(self, predict: Predict, process: Process, x: Tensor, velocity: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """d/dt of D(x(t), t, s) with dx/dt = `velocity` and the end s fixed; (B, ...)."""
        if self.how == "jvp":
            return _forward(lambda state, time: predict(state, time, s), (x, t), (velocity, torch.ones_like(t)))
        low, high = self._around(process, t, s, torch.full_like(t, process.noisiest))

        def at(time: Tensor) -> Tensor:
            return predict(x + column(time - t, x) * velocity, time, torch.minimum(s, time))

        return _difference(at, low, high, x)

    def in_end(self, predict: Predict, process: Process, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """d/ds of D(x, t, s); (B, ...)."""
        if self.how == "jvp":
            return _forward(lambda end: predict(x, t, end), (s,), (torch.ones_like(s),))
        low, high = self._around(process, s, torch.zeros_like(s), t)
        return _difference(lambda end: predict(x, t, end), low, high, x)

    def _around(self, process: Process, time: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """Times on both sides within [least, most], never below half the angle: no network is asked at time 0."""
        phi = process.angle(time)
        down = torch.maximum(torch.maximum(phi - self.delta, phi / 2), process.angle(least))
        up = torch.minimum(phi + self.delta, process.angle(most))
        return torch.minimum(process.time_of_angle(down), time), torch.maximum(process.time_of_angle(up), time)


def _forward(predict: Callable[..., Tensor], point: tuple[Tensor, ...], towards: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad(), _full_precision(), plain_attention(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, v.to(p)) for p, v in zip(point, towards, strict=True)]
        try:
            value, tangent = forward_ad.unpack_dual(predict(*duals))
        except (NotImplementedError, RuntimeError) as error:
            hint = "Use Slope('difference')."
            raise FewstepError(f"no forward-mode derivative of this student: {error}", hint=hint) from error
        return torch.zeros_like(value) if tangent is None else tangent


@contextmanager
def _full_precision() -> Iterator[None]:
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


def _difference(at: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, like: Tensor) -> Tensor:
    with torch.no_grad(), _full_precision():
        width = (high - low).clamp(min=torch.finfo(torch.float64).tiny ** 0.5)
        return column(1 / width, like) * (at(high) - at(low))
