"""Time grids: at which times a plan asks the network, and where it ends. Values, independent of every solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import PlanError, nearest
from fewstep.process import Process, VPDiscrete

CLEAN = None
"""End at the data itself: alpha 1, sigma 0."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Falling times (K,) in float64, and the time the last row ends at (`CLEAN`: alpha 1, sigma 0; never inferred).

    Raises:
        PlanError: the times are empty or do not fall strictly.
    """

    times: Tensor
    end: float | None = CLEAN

    def __post_init__(self) -> None:
        falling = self.times.numel() > 0 and bool((self.times.diff() < 0).all() and self.times.isfinite().all())
        if not falling or (self.end is not None and not self.end < float(self.times[-1].detach())):
            raise PlanError(
                "a time grid must fall strictly to its end",
                value=[round(float(t), 4) for t in self.times],
                hint="Use fewer steps, or remove duplicate times.",
            )

    def __len__(self) -> int:
        return self.times.numel()


def given(times: Sequence[float], end: float | None = CLEAN) -> Grid:
    """Exactly these times."""
    return Grid(torch.as_tensor(list(times), dtype=torch.float64), end)


def uniform(process: Process, steps: int, end: float | None = CLEAN, last: float | None = None) -> Grid:
    """Equal steps in time from the noisiest; the last call is at `last`, or one step before time 0."""
    _at_least_one(steps)
    if last is None:
        last = process.noisiest / steps
    return Grid(torch.linspace(process.noisiest, last, steps, dtype=torch.float64), end)


def uniform_lambda(
    process: Process, steps: int, last: float, end: float | None = CLEAN, first: float | None = None
) -> Grid:
    """Equal steps in half log-SNR from the noisiest time, or `first`, to time `last` (both calls included).

    k-diffusion's exponential sigmas, and what diffusers calls Lu's lambdas (arXiv 2206.00927).

    Raises:
        PlanError: no signal at all in the first time (its half log-SNR is infinite).
    """
    _at_least_one(steps)
    start, stop = _finite_lambdas(process, first, last)
    return _pinned(process, start + (stop - start) * torch.linspace(0, 1, steps, dtype=torch.float64), first, end)


def karras(
    process: Process,
    steps: int,
    last: float,
    rho: float = 7.0,
    end: float | None = CLEAN,
    first: float | None = None,
) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho) down to time `last` (arXiv 2206.00364, eq. 5), mapped to float times.

    Raises:
        PlanError: no signal at all in the first time (its sigma / alpha is infinite).
    """
    _at_least_one(steps)
    _positive("rho", rho)
    start, stop = torch.exp(-_finite_lambdas(process, first, last)) ** (1 / rho)
    levels = (start + torch.linspace(0, 1, steps, dtype=torch.float64) * (stop - start)) ** rho
    return _pinned(process, -levels.log(), first, end)


def polynomial(process: Process, steps: int, last: float, power: float = 2.0, end: float | None = CLEAN) -> Grid:
    """Equal steps in time^(1/power) from the noisiest to time `last`; 2 is the quadratic grid of arXiv 2204.13902."""
    _at_least_one(steps)
    _positive("power", power)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    start, stop = process.noisiest ** (1 / power), last ** (1 / power)
    times = (start + ramp * (stop - start)) ** power
    times[0] = process.noisiest
    return Grid(times, end)


def shifted(process: Process, steps: int, shift: float, end: float | None = CLEAN) -> Grid:
    """Equal steps in u, at times of u' = shift u / (1 + (shift - 1) u) of the range (arXiv 2403.03206).

    For a rectified flow whose process has no shift of its own.
    """
    _at_least_one(steps)
    _positive("shift", shift)
    u = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    return Grid(process.noisiest * shift * u / (1 + (shift - 1) * u), end)


def align_your_steps(process: Process, model: str = "StableDiffusion", steps: int = 10) -> Grid:
    """The optimised 10-step grids of arXiv 2404.14507, read from diffusers; other counts interpolate log sigma.

    Args:
        model: StableDiffusion or StableDiffusionXL on a discrete process, StableDiffusionVideo on VE.

    Raises:
        PlanError: no table of that name, or a table of discrete times for another process.
    """
    from diffusers.schedulers.scheduling_utils import AysSchedules

    _at_least_one(steps)
    models = sorted({key.removesuffix("Timesteps").removesuffix("Sigmas") for key in AysSchedules})
    if model not in models:
        raise PlanError("no published grid for this model", value=model, hint=nearest(model, models))
    labels = AysSchedules.get(f"{model}Timesteps")
    if labels is not None:
        _total(process, 1)
        times = torch.tensor(labels, dtype=torch.float64)
    else:
        times = process.time(-torch.tensor(AysSchedules[f"{model}Sigmas"][:-1], dtype=torch.float64).log())
    if steps == len(times):
        return Grid(times)
    lam = process.lam(times)
    place = torch.linspace(0, len(times) - 1, steps, dtype=torch.float64)
    low = place.floor().clamp(max=len(times) - 2).long()
    return Grid(process.time(lam[low] + (place - low) * (lam[low + 1] - lam[low])))


def learnable(
    process: Process,
    logits: Tensor,
    last: float,
    variable: str = "lambda",
    end: float | None = CLEAN,
    first: float | None = None,
) -> Grid:
    """A grid with fixed ends whose K - 1 gaps are softmax(logits): falling for any logits (arXiv 2405.15506).

    Args:
        logits: (K - 1,), may require gradients, which plans built on the grid then carry.
        variable: what the gaps share out, `lambda` or `time`.

    Raises:
        PlanError: logits of another shape, an unknown variable, or an infinite half log-SNR at the first time.
    """
    if logits.ndim != 1 or not logits.numel():
        raise PlanError("logits must be one number per gap", value=tuple(logits.shape), hint="Pass shape (steps - 1,).")
    if variable not in ("lambda", "time"):
        raise PlanError("unknown variable", value=variable, hint=nearest(variable, ("lambda", "time")))
    part = logits.double().softmax(0).cumsum(0)[:-1]  # the last one is the end itself
    begin = process.noisiest if first is None else first
    if variable == "time":
        inner = begin + part * (last - begin)
    else:
        start, stop = _finite_lambdas(process, first, last)
        inner = process.time(start + part * (stop - start))
    ends = torch.tensor([begin, last], dtype=torch.float64)
    return Grid(torch.cat([ends[:1], inner, ends[1:]]), end)


TRUNCATED = {
    "StableDiffusion": {4: (8, 5, 5), 5: (8, 5, 6), 6: (8, 5, 6), 8: (12, 7, 9)},
    "StableDiffusionXL": {4: (8, 5, 6), 5: (8, 5, 6), 6: (8, 5, 6), 8: (12, 12, 10)},
}
"""Points, rho and cut of the published truncated grids, by model and steps (repository of arXiv 2510.02390)."""


def truncated(
    process: VPDiscrete,
    steps: int,
    model: str = "StableDiffusion",
    *,
    points: int | None = None,
    rho: float | None = None,
    cut: int | None = None,
    power: float = 1.2,
    parity: bool = False,
) -> Grid:
    """Equal steps in time^(1/power) that STOP above zero noise, for decoders that bear it (arXiv 2510.02390).

    The end is entry `cut` of a Karras grid of `points` levels over the whole table. A step count without a published
    row takes 12 points, rho 10 (StableDiffusionXL: 12) and cut = steps, as its code does.

    Args:
        points, rho, cut: instead of the published ones.
        parity: the published sigma(t), abar linear between the table's entries, at the price of times that differ from
            the published ones by some 1e-3 (a grid holds the time alone).

    Raises:
        PlanError: not a discrete process, an unknown model, or a cut outside of the points.
    """
    total = _total(process, steps)
    if model not in TRUNCATED:
        raise PlanError("no truncated grid for this model", value=model, hint=nearest(model, TRUNCATED))
    usual = TRUNCATED[model].get(steps, (12, 12 if model == "StableDiffusionXL" else 10, steps))
    points, rho, cut = points or usual[0], rho or usual[1], cut or usual[2]
    if not 0 < cut < points:
        raise PlanError(f"cut must be 1 to {points - 1}", value=cut, hint="Give more points=, or another cut=.")
    bar = torch.tensor(process.alphas_cumprod, dtype=torch.float64)
    log_sigma = ((1 - bar) / bar).log() / 2
    if not bool(log_sigma.isfinite().all()):
        raise PlanError("sigma is infinite at an end of the table", hint="Use a process without zero terminal SNR.")
    ends = log_sigma[[-1, 0]].exp() ** (1 / rho)
    level = (rho * (ends[0] + cut / (points - 1) * (ends[1] - ends[0])).log()).item()
    low = int((log_sigma < level).sum()) - 1
    stop = low + (level - float(log_sigma[low])) / float(log_sigma[low + 1] - log_sigma[low])
    start = float(total - 1)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    times = (start ** (1 / power) + ramp * (stop ** (1 / power) - start ** (1 / power))) ** power
    times[0] = start
    if parity:
        left = times.floor().clamp(max=total - 2).long()
        mixed = bar[left] + (times - left) * (bar[left + 1] - bar[left])
        times[1:] = process.time(((mixed / (1 - mixed)).log() / 2)[1:])
    return Grid(times[:-1], float(times[-1]))


def trailing(process: VPDiscrete, steps: int, end: float | None = CLEAN) -> Grid:
    """diffusers' `trailing` spacing: from the last index down, never the first (arXiv 2305.08891)."""
    total = _total(process, steps)
    return Grid(torch.arange(total, 0, -total / steps, dtype=torch.float64)[:steps].round() - 1, end)


def leading(process: VPDiscrete, steps: int, offset: int = 0, end: float | None = CLEAN) -> Grid:
    """diffusers' `leading` spacing with `steps_offset`: from below the last index down to the first."""
    total = _total(process, steps)
    return Grid((torch.arange(steps).flip(0) * (total // steps) + offset).double(), end)


def linspace(process: VPDiscrete, steps: int, end: float | None = CLEAN) -> Grid:
    """diffusers' `linspace` spacing with both ends, rounded."""
    total = _total(process, steps)
    return Grid(torch.linspace(0, total - 1, steps, dtype=torch.float64).round().flip(0), end)


def distilled(process: VPDiscrete, steps: int, original: int = 50, end: float | None = CLEAN) -> Grid:
    """The grid of LCM and TCD students: `steps` of the `original` times that the student was distilled on."""
    total = _total(process, steps)
    if steps > original:
        raise PlanError(f"steps must not exceed the {original} distilled times", value=steps, hint="Use fewer steps.")
    stride = total // original
    taught = (torch.arange(1, original + 1) * stride - 1).flip(0)
    picks = torch.linspace(0, original, steps + 1, dtype=torch.float64)[:-1].floor().long()
    return Grid(taught[picks].double(), end)


def _finite_lambdas(process: Process, first: float | None, last: float) -> Tensor:
    """Half log-SNR at both ends of a grid, (2,)."""
    first = process.noisiest if first is None else first
    lam = process.lam(torch.tensor([first, last], dtype=torch.float64))
    if not bool(lam.isfinite().all()):
        raise PlanError(
            "log-SNR is infinite at an end of this grid", value=lam.tolist(), hint="Set `first` and `last` inside."
        )
    return lam


def _pinned(process: Process, lam: Tensor, first: float | None, end: float | None) -> Grid:
    """The grid at these half log-SNRs, whose first time is exactly the one asked for."""
    times = process.time(lam)
    times[0] = process.noisiest if first is None else first
    return Grid(times, end)


def _total(process: Process, steps: int) -> int:
    _at_least_one(steps)
    if not isinstance(process, VPDiscrete):
        raise PlanError(
            "this grid counts the steps of a discrete process",
            value=type(process).__name__,
            hint="Use `uniform` or `karras`.",
        )
    total = len(process.alphas_cumprod)
    if steps > total:
        raise PlanError(f"the process has {total} times", value=steps, hint="Use fewer steps.")
    return total


def _at_least_one(steps: int) -> None:
    if isinstance(steps, bool) or steps != int(steps) or steps < 1:
        raise PlanError("steps must be a whole number, at least 1", value=steps, hint="Pass steps=4, for instance.")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise PlanError(f"{name} must be positive", value=value, hint="Leave it at its default.")
