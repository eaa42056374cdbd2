"""What a network's output means, and exact conversions among all meanings.

Every prediction is linear in the data `x0` and the noise `eps` of the state `x = alpha x0 + sigma eps`, so it is enough
to know each one as a pair of weights; all conversions follow from solving a 2x2 system, once, here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from fewstep.errors import FewstepError, nearest

Real = TypeVar("Real", float, Tensor, float | Tensor)

KINDS = ("epsilon", "sample", "v_prediction", "velocity", "score", "edm")


@dataclass(frozen=True)
class Prediction:
    """Meaning of a raw network output.

    Attributes:
        kind: `epsilon` noise; `sample` data; `v_prediction` alpha eps - sigma x0; `velocity` eps - x0 (rectified flow);
            `score` -eps / sigma; `edm` the preconditioned output F of arXiv 2206.00364, eq. 7.
        sigma_data: Standard deviation of the data, used by `edm` alone.
        sign: 1, or -1 where the network gives -F (diffusers' EDM schedulers call that v_prediction); used by `edm`
            alone.
    """

    kind: str = "epsilon"
    sigma_data: float = 0.5
    sign: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FewstepError("unknown prediction", value=self.kind, hint=nearest(str(self.kind), KINDS))
        if self.sign not in (1.0, -1.0):
            raise FewstepError("the sign of a prediction is 1 or -1", value=self.sign)
        if not 0 < self.sigma_data < math.inf:
            hint = "It is the standard deviation of the training data (0.5 in EDM)."
            raise FewstepError("sigma_data must be positive", value=self.sigma_data, hint=hint)

    def weights(self, alpha: Real, sigma: Real) -> tuple[Real, Real]:
        """The pair (a, b) with output = a x0 + b eps at a state of scales (alpha, sigma)."""
        zero, one = 0 * sigma, 0 * sigma + 1
        if self.kind == "epsilon":
            return zero, one
        if self.kind == "sample":
            return one, zero
        if self.kind == "v_prediction":
            return -sigma, alpha
        if self.kind == "velocity":
            return -one, one
        if self.kind == "score":
            return zero, -1 / sigma
        skip, out = self._edm(alpha, sigma)
        return (1 - skip * alpha) / out, -skip * sigma / out

    def sample(self, alpha: Real, sigma: Real) -> tuple[Real, Real]:
        """The pair (p, m) with x0 = p x + m output.

        Raises:
            FewstepError: the output determines no data at this (alpha, sigma): a noise prediction at alpha = 0.
        """
        if self.kind == "edm":
            return self._edm(alpha, sigma)
        a, b = self.weights(alpha, sigma)
        # x = alpha x0 + sigma eps and n = a x0 + b eps, solved for x0
        return self._solve(b, -sigma, alpha * b - sigma * a)

    def noise(self, alpha: Real, sigma: Real) -> tuple[Real, Real]:
        """The pair (p, m) with eps = p x + m output.

        Raises:
            FewstepError: the output determines no noise at this (alpha, sigma): a data prediction at sigma = 0.
        """
        a, b = self.weights(alpha, sigma)
        return self._solve(-a, alpha, alpha * b - sigma * a)

    def input_scale(self, alpha: Real, sigma: Real) -> Real:
        """What the state is multiplied by before the network (1 unless `edm`)."""
        if self.kind != "edm":
            return 0 * sigma + 1
        return 1 / (sigma**2 + (alpha * self.sigma_data) ** 2) ** 0.5

    def convert(self, output: Tensor, x: Tensor, alpha: Real, sigma: Real, target: Prediction) -> Tensor:
        """Re-express a raw output at state `x` as the output of a network of prediction `target`."""
        p, m = self.sample(alpha, sigma)
        if target.kind == "edm":
            skip, out = target._edm(alpha, sigma)
            return ((p - skip) * x + m * output) / out
        data = p * x + m * output
        p, m = self.noise(alpha, sigma)
        noise = p * x + m * output
        a, b = target.weights(alpha, sigma)
        return a * data + b * noise

    def _edm(self, alpha: Real, sigma: Real) -> tuple[Real, Real]:
        """Skip and output scales for a state of any alpha (the paper has alpha = 1)."""
        variance = sigma**2 + (alpha * self.sigma_data) ** 2
        return alpha * self.sigma_data**2 / variance, self.sign * sigma * self.sigma_data / variance**0.5

    def _solve(self, p: Real, m: Real, determinant: Real) -> tuple[Real, Real]:
        if not isinstance(determinant, Tensor) and determinant == 0:
            raise FewstepError(
                f"a {self.kind} network says nothing about the other quantity at this noise level",
                hint="Start below the last time, or use a v_prediction or velocity model.",
            )
        return p / determinant, m / determinant
