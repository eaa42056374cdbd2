"""Empirical model statistics of DPM-Solver-v3: how a network's noise estimate depends on state and time, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fewstep.denoiser import Denoiser, fingerprint
from fewstep.errors import FewstepError, PlanError
from fewstep.files import read_tensors, write_tensors
from fewstep.jacobian import jvp, signs
from fewstep.process import Process

NoiseEstimate = Callable[[Tensor, Tensor], Tensor]
"""(states (B, ...), process times (B,)) -> noise estimates (B, ...), guidance included."""

QUIET = 1e3
"""Where f varies by less than so many roundings of sigma eps / alpha, no slope is fitted to it (Gaussian data)."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """The functions l, s, b of half log-SNR (arXiv 2310.13268) on a rising grid, and their origin.

    lam: (N + 1,), rising. l, s, b: each (N + 1,), or (N + 1, C, H, W) for one value per element. All float64;
    between the nodes they are linear.

    Raises:
        PlanError: shapes disagree, lam does not rise, or a value is not finite.
    """

    lam: Tensor
    l: Tensor  # noqa: E741  the paper's name
    s: Tensor
    b: Tensor
    model: str | None = None
    """Fingerprint of the network; None: any."""
    guidance: float | None = None
    samples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lam", "l", "s", "b"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).detach().double().cpu().contiguous())
        shapes = [tuple(t.shape) for t in (self.lam, self.l, self.s, self.b)]
        if self.lam.ndim != 1 or len(self.lam) < 2 or len({*shapes[1:]}) != 1 or shapes[1][:1] != shapes[0]:
            raise PlanError(
                "statistics need lam (N + 1,) and l, s, b of one shape (N + 1, ...)",
                value=shapes,
                mend="Make them with `estimate_statistics`.",
            )
        if not bool((self.lam.diff() > 0).all()):
            raise PlanError("lam of the statistics must rise strictly", mend="Sort it and drop duplicates.")
        if not all(bool(t.isfinite().all()) for t in (self.lam, self.l, self.s, self.b)):
            raise PlanError("statistics must be finite", mend="Estimate them again, in float32 or float64.")

    # --- variants ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one value: () for scalars, else that of one sample."""
        return tuple(self.l.shape[1:])

    def averaged(self) -> Statistics:
        """One scalar per lam, for another resolution or for a plan file without tensors."""
        return self._with(*(t.flatten(1).mean(1) if t.ndim > 1 else t for t in (self.l, self.s, self.b)))

    def linear(self) -> Statistics:
        """With l alone (s = b = 0): the part that is safe at few steps, where the integral of s becomes large."""
        return self._with(self.l, torch.zeros_like(self.s), torch.zeros_like(self.b))

    def _with(self, l: Tensor, s: Tensor, b: Tensor) -> Statistics:  # noqa: E741
        return Statistics(self.lam, l, s, b, self.model, self.guidance, self.samples, self.seed)

    # --- integrals, exact for the piecewise linear functions ---------------------------------------------------------

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """l, s, b at a 0-dim lam.

        Raises:
            PlanError: outside of the statistics.
        """
        cell, away = self._cell(lam)
        return tuple(t[cell] + away * rate[cell] for t, rate in zip((self.l, self.s, self.b), self._rates, strict=True))  # type: ignore[return-value]

    def between(self, start: Tensor, end: Tensor) -> Tensor:
        """The nodes strictly between two 0-dim lam."""
        first, last = torch.searchsorted(self.lam, torch.stack([start.detach(), end.detach()])).tolist()
        inside = self.lam[first:last]
        return inside[1:] if first < last and bool(inside[0] == start.detach()) else inside

    def integrals(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b, and the integrals L and S from the first node, at points of any shape; each (*points.shape, *shape).

        Raises:
            PlanError: outside of the statistics.
        """
        cell, away = self._cell(points)
        away = away.reshape((*away.shape, *[1] * len(self.shape)))
        L, S = (
            total[cell] + away * (value[cell] + away * half[cell])
            for total, value, half in zip(self._sums, (self.l, self.s), self._halves, strict=True)
        )
        return self.b[cell] + away * self._rates[2][cell], L, S

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return float(self.lam[0]), float(self.lam[-1])

    @cached_property
    def _rates(self) -> tuple[Tensor, Tensor, Tensor]:
        gaps = self._along(self.lam.diff())
        return self.l.diff(dim=0) / gaps, self.s.diff(dim=0) / gaps, self.b.diff(dim=0) / gaps

    @cached_property
    def _halves(self) -> tuple[Tensor, Tensor]:
        return self._rates[0] / 2, self._rates[1] / 2

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        gaps = self._along(self.lam.diff())
        sums = [torch.cumsum((t[1:] + t[:-1]) / 2 * gaps, 0) for t in (self.l, self.s)]
        return torch.cat([0 * sums[0][:1], sums[0]]), torch.cat([0 * sums[1][:1], sums[1]])

    def _along(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * len(self.shape))

    def _cell(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the piece, and the (differentiable) distance from its left node."""
        at = lam.detach()
        first, last = self._ends
        least, most = torch.stack(at.aminmax()).tolist()
        slack = 1e-6 * (last - first)  # rounding of time <-> lam
        if not first - slack <= least <= most <= last + slack:
            raise PlanError(
                f"the statistics cover half log-SNR {first:.4g} to {last:.4g}",
                value=[round(least, 4), round(most, 4)],
                mend="Set first and last times of the grid inside, or estimate them on a wider lam.",
            )
        cell = (torch.searchsorted(self.lam, at.contiguous(), right=True) - 1).clamp(0, len(self.lam) - 2)
        return cell, lam - self.lam[cell]

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file whose header says model, guidance, samples and seed; atomic."""
        header = {"fewstep_statistics": "1", "samples": str(self.samples), "seed": str(self.seed)}
        header |= {} if self.model is None else {"model": self.model}
        header |= {} if self.guidance is None else {"guidance": repr(self.guidance)}
        write_tensors(path, {name: getattr(self, name) for name in ("lam", "l", "s", "b")}, header)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            FewstepError: the file is absent, truncated or of another kind.
        """
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        if "fewstep_statistics" not in header or {*tensors} != {"lam", "l", "s", "b"}:
            raise FewstepError(f"{path} holds no statistics", value=sorted(tensors), mend="Write it with save.")
        guidance = header.get("guidance")
        return cls(
            **tensors,
            model=header.get("model"),
            guidance=None if guidance is None else float(guidance),
            samples=int(header.get("samples", 0)),
            seed=int(header.get("seed", 0)),
        )


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
) -> Statistics:
    """Measure l, s, b on noised data (arXiv 2310.13268): two passes over lam.

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
        raise FewstepError("statistics need data", value=(len(clean), batch), mend="Pass some hundred samples.")
    lam = torch.as_tensor(lam).double().cpu()
    if lam.ndim != 1 or len(lam) < 2 or not bool((lam.diff() > 0).all()):
        raise PlanError("lam of the statistics must rise strictly", mend="Sort it and drop duplicates.")
    estimate = _noise_of(network, process) if isinstance(network, Denoiser) else network
    walk = _Walk(estimate, process, clean, lam, batch, elementwise, method, seed, progress)
    slope = torch.stack([walk.sensitivity(i) for i in range(len(lam))])
    rate = _moving_average(torch.gradient(slope, spacing=(lam,), dim=0)[0], smooth)
    laws = [walk.law(i, slope[i], rate[i]) for i in range(len(lam))]
    model = getattr(network.network, "model", network.network) if isinstance(network, Denoiser) else None
    return Statistics(
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
