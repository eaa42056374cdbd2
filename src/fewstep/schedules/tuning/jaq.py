"""JAQ, the reference-free objective of Q-Sched: alignment + k * quality (arXiv 2509.01624)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.plan import Plan
from fewstep.rewards import Reward
from fewstep.schedules.tuning.family import Family
from fewstep.schedules.tuning.problem import Ahead

Generate = Callable[[Plan, Sequence[str], Sequence[int]], Tensor]
"""(plan, prompts, seeds) -> images (B, 3, H, W) in [0, 1]."""


CANDIDATES, FRACTION = 8, 0.5
"""How many candidates set the scale of the two terms, and on which share of the items."""


def standardising_cost(items: int) -> float:
    """What `JAQ.standardise` spends on so many items, in candidates scored on all of them."""
    return CANDIDATES * _share(items, FRACTION) / items


def _share(items: int, fraction: float) -> int:
    return max(1, round(fraction * items))


def items_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """(prompt, seed) seed by seed over shuffled prompts: every beginning covers as many prompts as it can.

    Every item has a random stream of its own, whichever items are asked together.
    """
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    return [(prompts[p], 100_003 * seed + p) for seed in seeds for p in order]


@dataclass
class JAQ:
    """Standardised alignment plus k times standardised quality, one score per (prompt, seed) item.

    Both terms are divided by their spread over a reference set of candidates (`standardise`), so that k compares like
    with like; the paper mixes raw scores, whose scales are accidents of the reward models.
    """

    generate: Generate
    alignment: Reward
    quality: Reward
    prompts: Sequence[str]
    seeds: Sequence[int]
    k: float = 2.0
    centre: tuple[float, float] = (0.0, 0.0)
    spread: tuple[float, float] = (1.0, 1.0)
    shared: Callable[[Plan, Sequence[int]], Tensor] | None = None
    per_item: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not self.prompts or not self.seeds:
            what = "calibration needs at least one prompt and one seed"
            raise FewstepError(what, value=(len(self.prompts), len(self.seeds)), hint="Add prompts to the recipe.")
        self.items = items_of(self.prompts, self.seeds)

    @property
    def size(self) -> int:
        """Number of items: prompts times seeds."""
        return len(self.items)

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """JAQ of each item (n,), higher is better; differentiable if the rewards are and gradients are enabled."""
        terms = self.terms(plan, items)
        scaled = (terms - terms.new_tensor(self.centre)) / terms.new_tensor(self.spread)
        return scaled[:, 0] + self.k * scaled[:, 1]

    @property
    def ahead(self) -> Ahead | None:
        """What is told of the (plan, items) that will be asked for next."""
        return getattr(self.shared, "ahead", None)

    def terms(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """Raw alignment and quality of each item, (n, 2)."""
        return (self.shared or self.own_terms)(plan, items)

    def own_terms(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """The terms, computed here."""
        prompts = [self.items[i][0] for i in items]
        images = self.generate(plan, prompts, [self.items[i][1] for i in items])
        return torch.stack([self.alignment.score(images, prompts), self.quality.score(images, prompts)], 1)

    def resampled(self, plan: Plan, items: Sequence[int], counts: Tensor) -> tuple[float, Tensor]:
        """The mean score of these items, and of resamples of them: counts (B, n) -> (B,)."""
        with torch.no_grad():
            scores = self(plan, items).double().cpu()
        return float(scores.mean()), counts @ scores / len(scores)

    def standardise(
        self, plan: Plan, family: Family, candidates: int = CANDIDATES, fraction: float = FRACTION
    ) -> float:
        """Set centre and spread from scattered candidates of the ramp-to-one box; returns the cost in candidates.

        The spread is that of the candidates' mean scores, the quantity the search compares.

        Raises:
            FewstepError: a reward that is not finite, or the same for every candidate.
        """
        ramp = Family("ramp-to-one", family.low, family.high)
        corners = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(candidates).double()
        corners = ramp.low + (ramp.high - ramp.low) * corners
        items = range(_share(self.size, fraction))
        if self.ahead is not None:
            self.ahead((ramp.apply(plan, c), items) for c in corners)
        with torch.no_grad():
            means = torch.stack([self.terms(ramp.apply(plan, c), items).mean(0) for c in corners]).double()
        centre, deviation = means.mean(0), means.std(0)
        for reward, weight, middle, spread in zip(
            (self.alignment, self.quality), (1.0, self.k), centre.tolist(), deviation.tolist(), strict=True
        ):
            if weight and reward.name != "none":
                _check_spread(reward.name, middle, spread)
        self.centre = (float(centre[0]), float(centre[1]))
        self.spread = (float(deviation[0].clamp(min=1e-9)), float(deviation[1].clamp(min=1e-9)))
        return candidates * len(items) / self.size


def _check_spread(name: str, centre: float, spread: float) -> None:
    if not math.isfinite(centre):
        hint = "Look at what it says of one picture."
        raise NonFiniteError(f"the reward {name} is not finite for pictures of this pipeline", value=centre, hint=hint)
    if spread <= 1e-7 * abs(centre):  # float32 rounds as much
        hint = "Leave it out (`none`), or use one that sees what the coefficients change."
        raise FewstepError(f"the reward {name} gives every candidate the same score", value=centre, hint=hint)
