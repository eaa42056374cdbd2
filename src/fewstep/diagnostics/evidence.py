"""The evidence bound of a plan: how many bits its sampler needs for given data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import Network, Noise
from fewstep.plan import Plan, Row
from fewstep.plan.combination import number

LEAST = 1e-12
"""Of a probability under a logarithm."""


@dataclass(frozen=True, eq=False)
class EvidenceBound:
    """An upper bound on -log p(x) of a sampler, in nats per sample.

    Attributes:
        prior: KL divergence (B,) of the noisiest state from the plan's prior.
        steps: KL divergences (B, K - 1) of the posterior of each step from the sampler's.
        data: -log p(x | last state), (B,).
        size: numbers of a sample.
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    size: int

    @property
    def nats(self) -> Tensor:
        """The whole bound (B,)."""
        return self.prior + self.steps.sum(1) + self.data

    @property
    def bits_per_dimension(self) -> Tensor:
        """The bound in bits per number (B,); below zero at times for densities, never where values have levels."""
        return self.nats / (self.size * math.log(2))


@torch.no_grad()
def evidence_bound(
    plan: Plan,
    network: Network,
    clean: Tensor,
    *,
    seeds: Sequence[int],
    std: float | None = None,
    levels: int | None = None,
) -> EvidenceBound:
    """An estimate of the evidence bound of the sampler that a plan is (arXiv 2006.11239, eq. 5; 2107.00630).

        -log p(x) <= KL(q(x_0 | x) || p(x_0)) + sum_k E KL(q(x_{k+1} | x_k, x) || p(x_{k+1} | x_k))
                     - E log p(x | x_{K-1})

    q is the process at the plan's noise levels, p the plan: its prior, its rows, and in the last one a normal law
    around the clean prediction. One draw of every state for each sample; several seeds of one sample tell the spread.

    Args:
        plan: of stochastic rows that read their own state and output alone, and end at the data.
        network: raw output; conditions are bound already.
        clean: data (B, ...).
        seeds: one per sample.
        std: of the last law; sigma / alpha of the last row unless given.
        levels: how many equally spaced values in [-1, 1] the data have (256 for bytes): the last law is then that of
            the nearest level, and the bound one of probabilities. None: of densities.

    Raises:
        PlanError: a row without noise before the last, one that reads earlier rows, or a plan that ends in noise.
        FewstepError: not one seed per sample, or levels below 2.
    """
    _refuse(plan, clean, seeds, levels)
    x, noise = clean.double(), Noise(seeds)
    rows = plan.rows
    state = _marginal(rows[0], x, noise)
    first = number(rows[0].alpha) * x - number(plan.prior_offset)
    prior = _kl(first, number(rows[0].sigma), number(plan.prior_scale))
    steps = []
    for k, (row, after) in enumerate(pairwise(rows)):
        mean, std_q = _posterior(row, after, state, x)
        steps.append(_kl(mean - _mean(row, k, network, state, clean), std_q, number(row.noise)))
        state = _marginal(after, x, noise)
    found = _mean(rows[-1], len(rows) - 1, network, state, clean)
    width = number(rows[-1].sigma) / number(rows[-1].alpha) if std is None else std
    data = -_log_likelihood(x, found, width, levels).flatten(1).sum(1)
    kept = torch.stack(steps, 1) if steps else prior.new_zeros(len(prior), 0)
    return EvidenceBound(prior, kept, data, x[0].numel())


def _marginal(row: Row, x: Tensor, noise: Noise) -> Tensor:
    """A draw of the state of a row given the data."""
    return number(row.alpha) * x + number(row.sigma) * noise.draw(x.shape[1:]).to(x)


def _posterior(row: Row, after: Row, state: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """Mean and deviation of q(x_{k+1} | x_k, x) (arXiv 2006.11239, eq. 7, for any process)."""
    (alpha, sigma), (alpha_s, sigma_s) = ((number(r.alpha), number(r.sigma)) for r in (row, after))
    ratio = alpha / alpha_s
    gain = ratio * sigma_s**2 / sigma**2
    variance = sigma_s**2 * (1 - (ratio * sigma_s / sigma) ** 2)
    return alpha_s * x + gain * (state - alpha * x), math.sqrt(max(variance, 0.0))


def _mean(row: Row, k: int, network: Network, state: Tensor, clean: Tensor) -> Tensor:
    """The mean of the plan's next state."""
    time = torch.as_tensor(row.network_time, dtype=torch.promote_types(clean.dtype, torch.float32))
    raw = network(state.to(clean) * number(row.input_scale), time.to(clean.device)).double()
    return number(row.state.get(k, 0.0)) * state + number(row.output.get(k, 0.0)) * raw + number(row.offset)


def _kl(away: Tensor, own: float, other: float) -> Tensor:
    """KL(N(m, own^2) || N(m - away, other^2)) summed over the numbers of a sample, (B,)."""
    if own == 0:
        raise PlanError("a step of the plan does not change the noise level", hint="Leave corrector steps out.")
    each = math.log(other / own) + (own**2 + away.square()) / (2 * other**2) - 0.5
    return each.flatten(1).sum(1)


def _log_likelihood(x: Tensor, mean: Tensor, std: float, levels: int | None) -> Tensor:
    """log N(x; mean, std^2), or the log probability of the level that x is at; the outer levels take the tails."""
    if levels is None:
        return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)
    half = 1 / (levels - 1)
    above = torch.special.ndtr((x + half - mean) / std).where(x < 1 - half, 1.0)
    below = torch.special.ndtr((x - half - mean) / std).where(x > -1 + half, 0.0)
    return (above - below).clamp(min=LEAST).log()


def _refuse(plan: Plan, clean: Tensor, seeds: Sequence[int], levels: int | None) -> None:
    if len(seeds) != len(clean):
        raise FewstepError("one seed per sample is needed", value=(len(seeds), len(clean)))
    if levels is not None and levels < 2:
        raise FewstepError("data have at least two levels", value=levels, hint="Use 256 for bytes.")
    if number(plan.final_sigma) != 0 or number(plan.rows[-1].noise) != 0:
        raise PlanError("the bound needs a plan that ends at the data", hint="Use a grid without an end.")
    for k, row in enumerate(plan.rows):
        if {*row.state, *row.output} - {k} or row.hook:
            hint = "Use ddim with eta=1, euler_ancestral or residual_shift."
            raise PlanError(f"row {k} reads more than its own state and output", hint=hint)
        if k + 1 < plan.steps and not number(row.noise) > 0:
            hint = "Use ddim with eta=1: without noise the sampler gives given data no probability."
            raise PlanError(f"row {k} draws no noise", hint=hint)
