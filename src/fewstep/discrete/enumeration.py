"""The exact law of a plan of reveals over all sequences, for short ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.discrete.denoiser import TokenDenoiser
from fewstep.discrete.plan import Reveal, RevealPlan
from fewstep.discrete.process import MaskedDiffusion
from fewstep.discrete.transition import reveal_probability
from fewstep.errors import FewstepError, PlanError

MOST = 1 << 24
"""Sequences that are enumerated."""
Known = tuple[int, ...]
"""Positions that are revealed, in rising order."""


@dataclass(eq=False)
class TokenLaws:
    """p(x_i | z) of every sequence z with masks, each asked for once; the mask must be the last symbol.

    Attributes:
        denoiser: of the tokens.
        length: of a sequence.
        batch: sequences per call.
    """

    denoiser: TokenDenoiser
    length: int
    batch: int = 8192
    _found: dict[Known, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        process = self.denoiser.process
        if process.mask != process.tokens - 1:
            raise FewstepError("the mask must be the last symbol", value=process.mask)
        if (process.tokens - 1) ** self.length > MOST:
            raise FewstepError("too many sequences to enumerate", value=(process.tokens - 1) ** self.length)

    def states(self, known: Known) -> Tensor:
        """Every sequence with these positions revealed (n^|known|, L)."""
        symbols, count = self.denoiser.process.mask, len(known)
        z = torch.full((symbols**count, self.length), symbols)
        if count:
            z[:, list(known)] = torch.cartesian_prod(*[torch.arange(symbols)] * count).reshape(-1, count)
        return z

    @torch.no_grad()
    def of(self, known: Known) -> Tensor:
        """p(x_i = v | z) at the masked positions (states, L - |known|, n), float64."""
        if known not in self._found:
            masked = [i for i in range(self.length) if i not in known]
            laws = [self.denoiser(z)[:, masked, :-1].double().exp() for z in self.states(known).split(self.batch)]
            self._found[known] = torch.cat(laws)
        return self._found[known]


def enumerated_law(plan: RevealPlan, laws: TokenLaws) -> Tensor:
    """Probability of every sequence, (n,) * L in float64, n symbols besides the mask.

    A row moves probability from each set of revealed positions to each larger one: what is revealed together is a
    product. Positions are revealed independently, or a number of them at random.

    Args:
        plan: independent or random reveals at temperature 1, nothing masked again.
        laws: of the denoiser; plans of one denoiser share them.

    Raises:
        PlanError: rows of another kind, or a plan of another process.
    """
    process, length = laws.denoiser.process, laws.length
    if plan.process != process:
        raise PlanError("this plan of reveals was made for another process", value=plan.name)
    symbols = process.mask
    now: dict[Known, Tensor] = {(): torch.ones((), dtype=torch.float64)}
    for row in plan.rows:
        if row.order not in ("independent", "random") or row.temperature != 1 or row.remask:
            raise PlanError("only independent and random reveals at temperature 1 are enumerated", value=plan.name)
        after: dict[Known, Tensor] = {}
        for known, weight in now.items():
            masked = [i for i in range(length) if i not in known]
            for revealed, share in _subsets(process, row, masked, length):
                joint = share * weight.flatten()[:, None] if revealed else share * weight
                for i in revealed:
                    law = laws.of(known)[:, masked.index(i)]
                    joint = (joint[:, :, None] * law[:, None]).flatten(1)
                together = known + revealed
                order = sorted(range(len(together)), key=lambda k: together[k])
                found = joint.reshape((symbols,) * len(together)).permute(order)
                place = tuple(sorted(together))
                after[place] = after[place] + found if place in after else found
        now = after
    return now[tuple(range(length))]


def _subsets(process: MaskedDiffusion, row: Reveal, masked: list[int], length: int) -> list[tuple[Known, float]]:
    """Which of the masked positions a row reveals, with the probability of each choice that is possible."""
    every = [s for size in range(len(masked) + 1) for s in itertools.combinations(masked, size)]
    if row.next_time == 0:
        return [(every[-1], 1.0)]
    if row.order == "independent":
        p = float(reveal_probability(process, row.time, row.next_time))
        return [(s, p ** len(s) * (1 - p) ** (len(masked) - len(s))) for s in every]
    left = ((1 - process.alpha(row.next_time)) / (1 - process.alpha(1.0))).float()  # rounds as the sampler does
    size = max(0, len(masked) - int((length * left).floor()))
    return [(s, 1 / math.comb(len(masked), size)) for s in every if len(s) == size]
