"""Guidances: rules by which a clean prediction agrees with a measurement, for any plan.

`posterior(denoiser, measurement, rule)` is a denoiser whose clean prediction x0 the rule has changed and turned back
into an output of the network, so every plan, solver and number of steps runs with it as it is. With r = y - A x0, J
the Jacobian of the clean prediction, and x_t = alpha x0 + sigma eps, the exact change of a Gaussian is

    x0 + C A^T (A C A^T + s^2)^-1 r,        C = Cov[x0 | x_t] = sigma^2 / alpha J;

the rules differ in what they put for C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.guidance.correction import corrected
from fewstep.jacobian import linearized
from fewstep.tasks.restoration.operators import LinearOperator, Map


@dataclass(frozen=True, eq=False)
class Measurement:
    """What came out of an operator.

    Attributes:
        operator: what was done.
        values: y, of the operator's output shape, or a batch of it.
        noise: standard deviation s of the white noise in it.

    Raises:
        FewstepError: values of another shape or not finite, or a negative noise.
    """

    operator: LinearOperator
    values: Tensor
    noise: float = 0.0

    def __post_init__(self) -> None:
        if tuple(self.values.shape[-len(self.operator.output_shape) :]) != self.operator.output_shape:
            hint = f"It gives {self.operator.output_shape} for pictures of {self.operator.input_shape}."
            what = f"the measurement is not one of {self.operator.name}"
            raise FewstepError(what, value=tuple(self.values.shape), hint=hint)
        if not bool(self.values.isfinite().all()):
            raise FewstepError("a measurement holds NaN or infinity", hint="Mask what was not measured.")
        if not 0 <= self.noise < float("inf"):
            raise FewstepError("the noise of a measurement is a standard deviation", value=self.noise, hint="Use 0.")

    def residual(self, clean: Tensor) -> Tensor:
        """y - A x0 for pictures (B, *input_shape)."""
        return self.values.to(clean) - self.operator.forward(clean)


Rule = Callable[[Map, Tensor, Tensor, Tensor, Measurement], Tensor]
"""(states -> clean predictions, states (B, ...), alpha, sigma, measurement) -> changed clean predictions (B, ...)."""


def posterior(denoiser: Denoiser, measurement: Measurement, rule: Rule) -> Denoiser:
    """The denoiser that knows the measurement: `sample(plan, posterior(...).network, ...)` with any plan.

    It is `fewstep.guidance.corrected` by the rule. One evaluation stays one; `dps` and `pigdm` add a product with the
    transposed Jacobian to it.
    """
    return corrected(denoiser, partial(_applied, rule, measurement))


def _applied(rule: Rule, measurement: Measurement, clean: Map, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return rule(clean, x, alpha, sigma, measurement)


def dps(strength: float = 1.0, *, variance: str = "residual") -> Rule:
    """Diffusion posterior sampling (arXiv 2209.14687, eq. 15): the gradient of |y - A x0(x)|^2 through the network.

        x0 + strength sigma^2 / alpha J^T A^T r / v

    One product with the transposed Jacobian a step. The paper writes it as a step of the state, of a size found for
    1000 steps; as a change of the prediction it means the same for every plan.

    Args:
        strength: factor of the gradient.
        variance: v is the mean square of the residual, but at least the noise's (`residual`: the paper's normalisation,
            free of units); or the noise's alone (`noise`: the likelihood of a certain x0, stiff at few steps).

    Raises:
        FewstepError: an unknown variance, or the noise's where there is none.
    """
    if variance not in ("residual", "noise"):
        raise FewstepError("unknown variance of dps", value=variance, hint="Use 'residual' or 'noise'.")

    def rule(clean: Map, x: Tensor, alpha: Tensor, sigma: Tensor, measured: Measurement) -> Tensor:
        if variance == "noise" and not measured.noise:
            raise FewstepError("a measurement without noise has no variance", hint="Use variance='residual'.")
        data, transposed = linearized(clean, x)
        r = measured.residual(data)
        spread = r.flatten(1).square().mean(1).reshape(-1, *[1] * (x.ndim - 1))
        floor = measured.noise**2
        v = spread.clamp(min=floor or torch.finfo(x.dtype).tiny) if variance == "residual" else floor
        return data + strength * sigma**2 / alpha * transposed(measured.operator.adjoint(r)) / v

    return rule


def pigdm(*, exact: bool = False, iterations: int = 50, tolerance: float = 1e-5) -> Rule:
    """Pseudo-inverse guidance (PiGDM, OpenReview 9_gsMA8MRKQ): the likelihood with the doubt of the clean prediction.

        x0 + sigma^2 / alpha J^T A^T (rho A A^T + s^2)^-1 r,        rho = sigma^2 / (alpha^2 + sigma^2)

    rho is the doubt about data of unit variance.

    Args:
        exact: rho becomes sigma^2 / alpha J: the covariance of the network itself (Tweedie), by one more product for
            each iteration; Gaussian data are then sampled exactly as the steps grow.
        iterations: of conjugate gradients, at most, where the system is not solved by the operator's spectrum.
        tolerance: they end where the residual has shrunk to this part.
    """

    def rule(clean: Map, x: Tensor, alpha: Tensor, sigma: Tensor, measured: Measurement) -> Tensor:
        data, transposed = linearized(clean, x)
        operator, r = measured.operator, measured.residual(data)
        rho = sigma**2 / (alpha**2 + sigma**2)
        covariance = lambda v: sigma**2 / alpha * transposed(v)  # noqa: E731
        if not exact and operator.filter is not None:
            weight = operator.filter(
                lambda s: (_one(rho) * s**2 + measured.noise**2).reciprocal().where(s > 0, 0.0), operator.adjoint(r)
            )
        else:
            inner = covariance if exact else (lambda v: rho * v)
            system = lambda u: operator.forward(inner(operator.adjoint(u))) + measured.noise**2 * u  # noqa: E731
            weight = operator.adjoint(conjugate_gradients(system, r, iterations, tolerance))
        return data + covariance(weight)

    return rule


def ddnm() -> Rule:
    """Range and null space (DDNM, arXiv 2212.00490, eq. 13): what was measured replaces what was predicted.

        x0 + A^+ r

    No derivative. Noise in the measurement comes into the picture as it is: `ddrm` weighs it.
    """
    return lambda clean, x, alpha, sigma, measured: (data := clean(x)) + measured.operator.pinv(measured.residual(data))


def ddrm() -> Rule:
    """Spectral weights (after DDRM, arXiv 2201.11793, eq. 8): each singular direction as far as it was measured.

        x0 + V w V^T A^+ r,        w_i = min(1, s_i sigma / (alpha noise))

    A direction that was measured more finely than the state's own noise is replaced, the others in proportion, so that
    without noise this is `ddnm`. The paper also draws those directions with a variance of their own, which no plan can
    do for one direction alone; here the plan's noise stays.
    """

    def rule(clean: Map, x: Tensor, alpha: Tensor, sigma: Tensor, measured: Measurement) -> Tensor:
        data = clean(x)
        ratio = _one(sigma) / (_one(alpha) * measured.noise).clamp(min=torch.finfo(x.dtype).tiny)
        weight = lambda s: ((s * ratio).clamp(max=1) / s**2).where(s > 0, 0.0)  # noqa: E731
        operator = measured.operator
        return data + operator.spectral(weight, operator.adjoint(measured.residual(data)))

    return rule


def conjugate_gradients(system: Map, right: Tensor, iterations: int, tolerance: float) -> Tensor:
    """u with system(u) = right, sample by sample, for a symmetric system that is not negative.

    Args:
        system: a linear function of (B, ...).
        right: (B, ...), in the range of the system.
        iterations: at most.
        tolerance: of the residual's size over that of `right`.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    u, r, step = torch.zeros_like(right), right, right
    size = first = dot(r, r)
    for _ in range(iterations):
        if bool((size <= tolerance**2 * first).all()):
            break
        moved = system(step)
        length = _ratio(size, dot(step, moved))
        u, r = u + length * step, r - length * moved
        size, before = dot(r, r), size
        step = r + _ratio(size, before) * step
    return u


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where a sample is solved."""
    return torch.where(b > 0, a / b, 0.0)


def _one(scale: Tensor) -> Tensor:
    """A scale shaped to multiply singular values, the same for all samples.

    Raises:
        FewstepError: it differs between the samples.
    """
    first = scale.reshape(-1)[0]
    if scale.numel() > 1 and not bool((scale == first).all()):
        raise FewstepError("a spectrum is filtered at one time for all samples", hint="Call with one time.")
    return first


GUIDANCES: dict[str, Callable[..., Rule]] = {"dps": dps, "pigdm": pigdm, "ddnm": ddnm, "ddrm": ddrm}
"""The functions that make a rule, by name."""
