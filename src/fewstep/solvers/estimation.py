"""Measuring the statistics of DPM-Solver-v3: how a network's noise estimate depends on state and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, fingerprint
from fewstep.errors import FewstepError, PlanError
from fewstep.jacobian import jvp, signs
from fewstep.process import Process
from fewstep.solvers.statistics import ModelStatistics

NoiseEstimate = Callable[[Tensor, Tensor], Tensor]
"""(states (B, ...), process times (B,)) -> noise estimates (B, ...), guidance included."""

QUIET = 1e3
"""Where f varies by less than so many roundings of sigma eps / alpha, no slope is fitted to it (Gaussian data)."""


def estimate_statistics(
    network: Denoiser | NoiseEstimate,
    process: Process,
    clean: Tensor,
    lam: Tensor,
    *,
    seed: int = 0,
    elementwise: bool = False,
    batch: int = 64,
    smooth: int = 5,
    method: str = "auto",
    guidance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """Measure l, s, b on noised data (arXiv 2310.13268, eq. 5 and 11): two passes over lam.

    Costs two evaluations and a Jacobian product twice per sample and lam. Memory is one batch and a few sums of the
    size of one sample.

    Args:
        network: a denoiser, or a function that estimates the noise (`NoiseEstimate`).
        clean: data or model samples (n, ...), in the dtype and on the device that the network takes.
        lam: (N + 1,) rising half log-SNR; should reach over every grid that will be used, N much above its steps.
        elementwise: one value per element of a sample instead of one per lam.
        smooth: half width in nodes of the moving average over the slope of l.
        method: of `fewstep.jacobian.jvp`; `difference` for quantized activations.
        guidance: scale that the network's output includes, to be written into the plans.
        progress: called with (done, all) after each lam of each pass.

    Raises:
        FewstepError: no data.
        PlanError: lam does not rise, or an estimate is not finite.
    """
    if not len(clean) or batch < 1:
        raise FewstepError("statistics need data", value=(len(clean), batch), hint="Pass some hundred samples.")
    lam = torch.as_tensor(lam).double().cpu()
    if lam.ndim != 1 or len(lam) < 2 or not bool((lam.diff() > 0).all()):
        raise PlanError("lam of the statistics must rise strictly", hint="Sort it and drop duplicates.")
    estimate = _noise_of(network, process) if isinstance(network, Denoiser) else network
    walk = _Walk(estimate, process, clean, lam, batch, elementwise, method, seed, progress)
    slope = torch.stack([walk.sensitivity(i) for i in range(len(lam))])
    rate = _moving_average(torch.gradient(slope, spacing=(lam,), dim=0)[0], smooth)
    laws = [walk.law(i, slope[i], rate[i]) for i in range(len(lam))]
    model = getattr(network.network, "model", network.network) if isinstance(network, Denoiser) else None
    return ModelStatistics(
        lam,
        slope,
        torch.stack([law[0] for law in laws]),
        torch.stack([law[1] for law in laws]),
        model=fingerprint(model) if isinstance(model, torch.nn.Module) else None,
        guidance=guidance,
        samples=len(clean),
        seed=seed,
    )


@dataclass(frozen=True)
class _Walk:
    """The two passes; noise and signs are drawn per lam, so that the batch size changes nothing."""

    estimate: NoiseEstimate
    process: Process
    clean: Tensor
    lam: Tensor
    batch: int
    elementwise: bool
    method: str
    seed: int
    progress: Callable[[int, int], None] | None

    def sensitivity(self, i: int) -> Tensor:
        """l: the mean diagonal of sigma d eps / dx, by random signs."""
        generator = self._generator(2 * i)
        time = self.process.time(self.lam[i])
        alpha, sigma = float(self.process.alpha(time)), float(self.process.sigma(time))
        total = torch.zeros(())
        with torch.no_grad():
            for x0, z in self._batches(generator):
                v = signs(x0, generator)
                times = time.to(x0.device).expand(len(x0))
                x = alpha * x0 + sigma * z
                product = jvp(partial(self._estimate_at, times), x, v, method=self.method)[1]
                total = total + self._sum(sigma * v * product)
        self._tell(i)
        return total / len(self.clean)

    def _estimate_at(self, times: Tensor, x: Tensor) -> Tensor:
        return self.estimate(x, times)

    def law(self, i: int, slope: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """s and b: the affine law f' = s f + b along the flow, by least squares."""
        generator = self._generator(2 * i + 1)
        time = self.process.time(self.lam[i])
        alpha, sigma = float(self.process.alpha(time)), float(self.process.sigma(time))
        rho = sigma / alpha
        sums = [torch.zeros(()) for _ in range(5)]
        with torch.no_grad():
            for x0, z in self._batches(generator):
                x = alpha * x0 + sigma * z
                noise = self.estimate(x, time.to(x0.device).expand(len(x0)))
                f, change = self._along_the_flow(x, noise, time, slope, rate)
                f, change = f.double(), change.double()
                parts = (f, change, f * f, f * change, (rho * noise.double()) ** 2)
                sums = [total + self._sum(part) for total, part in zip(sums, parts, strict=True)]
        self._tell(len(self.lam) + i)
        f, change, square, product, power = (total / len(self.clean) for total in sums)
        variance = square - f * f
        rounding = QUIET * torch.finfo(self.clean.dtype).eps
        quiet = variance <= rounding**2 * power + 1e-12 * square  # the second: cancellation in the line above
        s = torch.where(quiet, 0.0, (product - f * change) / torch.where(quiet, 1.0, variance))
        return s, change - s * f

    def _along_the_flow(
        self, x: Tensor, noise: Tensor, time: Tensor, slope: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """f = (sigma eps - l x) / alpha and its derivative in lambda, both (B, ...), while x follows the exact flow."""
        per_lambda = 1 / _slope_of_lam(self.process, time)
        alpha, sigma = float(self.process.alpha(time)), float(self.process.sigma(time))
        data = (x - sigma * noise) / alpha
        slope, rate = slope.to(x), rate.to(x)
        shape = (len(x), *[1] * (x.ndim - 1))

        def residual(ahead: Tensor) -> Tensor:
            """f a little further: data and noise frozen is the flow to first order."""
            t = time.to(x.device) + per_lambda * ahead.double()
            a, r = self.process.alpha(t).to(x.dtype), self.process.sigma(t).to(x.dtype)
            state = a * data + r * noise
            return (r * self.estimate(state, t.reshape(-1)) - (slope + rate * ahead) * state) / a

        return jvp(residual, x.new_zeros(shape), x.new_ones(shape), method=self.method)

    def _batches(self, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        noise = torch.randn(self.clean.shape, generator=generator).to(self.clean)
        return list(zip(self.clean.split(self.batch), noise.split(self.batch), strict=True))

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over samples of each element, or of the mean over elements; float64 on the CPU."""
        values = values.double()
        return (values.sum(0) if self.elementwise else values.flatten(1).mean(1).sum()).cpu()

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done + 1, 2 * len(self.lam))


def _noise_of(denoiser: Denoiser, process: Process) -> NoiseEstimate:
    """The noise estimate of a denoiser, differentiable in state and time."""

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (scale.to(x.dtype).reshape(shape) for scale in (process.alpha(t), process.sigma(t)))
        scale = denoiser.prediction.input_scale(alpha, sigma)
        width = torch.promote_types(x.dtype, torch.float32)
        raw = denoiser.network(x * scale, process.network_time(t).to(width)).to(x.dtype)
        p, m = denoiser.prediction.noise(scale * alpha, scale * sigma)
        return p * scale * x + m * raw

    return estimate


def _slope_of_lam(process: Process, time: Tensor) -> float:
    """d lambda / dt; negative."""
    with torch.enable_grad():
        t = time.detach().clone().requires_grad_()
        return float(torch.autograd.grad(process.lam(t), t)[0])


def _moving_average(values: Tensor, half: int) -> Tensor:
    """Mean over up to `half` neighbours on each side, as many on both (fewer at the ends)."""
    sums = torch.cat([torch.zeros_like(values[:1]), values.cumsum(0)])
    place = torch.arange(len(values))
    reach = torch.minimum(torch.minimum(place, len(values) - 1 - place), torch.tensor(half))
    count = (2 * reach + 1).reshape(-1, *[1] * (values.ndim - 1))
    return (sums[place + reach + 1] - sums[place - reach]) / count
