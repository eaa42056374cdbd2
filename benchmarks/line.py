"""The one-dimensional mixture of the exact checks: its grids, its exact flow, and the statistics of its score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.executor import sample
from fewstep.metrics.intervals import seed_interval
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process, VPContinuous
from fewstep.solvers import Grid, ModelStatistics
from fewstep.testing.mixture import Mixture

MIXTURE = Mixture.line([0.3, 0.5, 0.2], [-2.0, 0.5, 3.0], [0.5, 0.3, 0.8])
EPSILON = Prediction("epsilon")
VP = VPContinuous()


def levels(process: Process, t: float) -> tuple[float, float]:
    """(alpha, sigma) at a time."""
    return float(process.alpha(t)), float(process.sigma(t))


def at(lam: float) -> tuple[float, float]:
    """(alpha, sigma) of a variance-preserving process at a half log-SNR."""
    return levels(VP, VP.time(lam))


def grid_of(lam: Tensor | Sequence[float], process: Process = VP) -> Grid:
    """A grid through these half log-SNR, the last of them its end."""
    times = process.time(torch.as_tensor(lam, dtype=torch.float64))
    return Grid(times[:-1], float(times[-1]))


def run(plan: Plan, start: Tensor, mixture: Mixture = MIXTURE, process: Process = VP) -> Tensor:
    """Final states of first states (B, 1), in float64, with a perfect network."""
    network = mixture.network(process, plan.prediction)
    return sample(plan, network, seeds=range(len(start)), shape=start.shape[1:], state=start, dtype=torch.float64)


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return float((a - b).square().mean().sqrt())


def quantiles(count: int) -> Tensor:
    """The middles of `count` equal parts of a standard normal, (count, 1) float64."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (2**0.5 * torch.erfinv(2 * middles - 1)).unsqueeze(1)


def spread(values: Sequence[float]) -> dict[str, object]:
    """Mean, Student's t interval and the values of a few seeds."""
    return seed_interval(torch.tensor(list(values))).as_dict() | {"values": list(values)}


# --- the statistics of DPM-Solver-v3, by quadrature over the density --------------------------------------------------


def statistics(low: float = -4.0, high: float = 4.0, nodes: int = 401, mixture: Mixture = MIXTURE) -> ModelStatistics:
    """l, s, b of the perfect network: means over the density at each half log-SNR, derivatives by differences."""
    lam = torch.linspace(low, high, nodes, dtype=torch.float64)
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64).unsqueeze(1)
    slope = torch.tensor([_sensitivity(mixture, x, float(v)) for v in lam], dtype=torch.float64)
    rate = torch.gradient(slope, spacing=(lam,))[0]
    laws = [_law(mixture, x, *map(float, row)) for row in zip(lam, slope, rate, strict=True)]
    s, b = torch.tensor(laws, dtype=torch.float64).unbind(1)
    return ModelStatistics(lam, slope, s, b)


def _noise(mixture: Mixture, x: Tensor, lam: float) -> Tensor:
    return mixture.estimates(x, *at(lam))[1]


def _density(mixture: Mixture, x: Tensor, lam: float) -> Tensor:
    weight = mixture.log_density(x, *at(lam)).exp()
    return weight / weight.sum()


def _sensitivity(mixture: Mixture, x: Tensor, lam: float, step: float = 1e-4) -> float:
    """l = E sigma d eps / dx."""
    change = (_noise(mixture, x + step, lam) - _noise(mixture, x - step, lam)).squeeze(1) / (2 * step)
    return float((_density(mixture, x, lam) * change).sum()) * at(lam)[1]


def _law(mixture: Mixture, x: Tensor, lam: float, slope: float, rate: float) -> tuple[float, float]:
    """s and b of f' = s f + b along the flow, by weighted least squares."""
    alpha, sigma = at(lam)
    noise = _noise(mixture, x, lam)
    data = (x - sigma * noise) / alpha

    def f(ahead: float) -> Tensor:
        a, r = at(lam + ahead)
        state = a * data + r * noise  # data and noise frozen is the flow to first order
        return ((r * _noise(mixture, state, lam + ahead) - (slope + rate * ahead) * state) / a).squeeze(1)

    weight, now, change = _density(mixture, x, lam), f(0.0), (f(1e-4) - f(-1e-4)) / 2e-4
    mean, rise = float((weight * now).sum()), float((weight * change).sum())
    covariance = float((weight * now * change).sum()) - mean * rise
    s = covariance / (float((weight * now.square()).sum()) - mean**2)
    return s, rise - s * mean
