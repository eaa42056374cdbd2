"""Rounds of proposing and measuring, and what says that proposals have left the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.data.sequences import ScoredSequences
from fewstep.errors import FewstepError
from fewstep.tasks.design.ways import DesignSettings, evolution, way_named

FAR, PROMISED = 1.25, 1.0
"""Distance to the scored sequences, over that of these among themselves, and expected score beyond the best measured
one (in deviations), above which proposals are said to have left the data."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """Sequences to be measured, the most promising first.

    Attributes:
        tokens: (n, L), none of them scored before, none twice.
        expected: score by the model (n,); NaN where no model proposed.
        nearest: letters that differ from the nearest scored sequence (n,).
        off_support: mean of `nearest` over the mean of the scored sequences among themselves; 1 is as near as data.
        filled: how many the way could not find and evolution added.
    """

    tokens: Tensor
    expected: Tensor
    nearest: Tensor
    off_support: float
    filled: int

    def warnings(self, scored: ScoredSequences) -> list[str]:
        """What a reader must know before measuring them."""
        said, finite = [], scored.scores[scored.scores.isfinite()]
        if self.off_support > FAR:
            said.append(
                f"off support: the proposals lie {self.off_support:.1f} times as far from the scored sequences as "
                "these from each other; expected scores there are extrapolation. A smaller scale stays nearer."
            )
        best = float(finite.max())
        promised = self.expected[self.expected.isfinite()]
        if len(promised) and float(promised.mean()) > best + PROMISED * float(finite.std()):
            said.append(
                f"the model expects {float(promised.mean()):.3g} on average, more than was ever measured ({best:.3g})"
            )
        if self.filled:
            said.append(f"{self.filled} proposals are of the evolutionary search: the model gave too few new sequences")
        return said


def propose(scored: ScoredSequences, way: str, count: int, settings: DesignSettings, round: int = 0) -> Proposals:
    """New sequences by one way.

    Args:
        scored: what was measured; scores may be NaN.
        way: one of `WAYS`.
        count: how many.
        settings: of the way.
        round: another one draws others.

    Raises:
        FewstepError: an unknown way, fewer than one sequence, or fewer unseen sequences than are wanted.
    """
    if count < 1:
        raise FewstepError("propose at least one sequence", value=count)
    if len(scored.alphabet) ** scored.length - len(set(map(tuple, scored.tokens.tolist()))) < count:
        raise FewstepError("there are fewer sequences that were not scored", value=count, hint="Ask for fewer.")
    generator = torch.Generator().manual_seed(1009 * settings.seed + round)
    found, model = way_named(way)(scored, 3 * count, replace(settings, seed=1009 * settings.seed + round), generator)
    fresh = _unseen(found, scored, torch.empty(0, scored.length, dtype=torch.long))[:count]
    filled = count - len(fresh)
    while len(fresh) < count:  # evolution with more and more mutations finds every sequence in the end
        settings = replace(settings, mutations=min(2 * settings.mutations, float(scored.length)))
        more = evolution(scored, 4 * count, settings, generator)[0]
        fresh = torch.cat([fresh, _unseen(more, scored, fresh)])[:count]
    expected = torch.full((count,), torch.nan) if model is None else model.score(fresh)
    order = expected.nan_to_num(nan=0.0).argsort(descending=True, stable=True)
    nearest = distances(fresh, scored.tokens).amin(1)
    own = distances(scored.tokens, scored.tokens) + scored.length * torch.eye(len(scored))
    ratio = float(nearest.mean() / own.amin(1).mean().clamp(min=1e-6))
    return Proposals(fresh[order], expected[order], nearest[order], ratio, filled)


def design(
    scored: ScoredSequences,
    measure: Callable[[Tensor], Tensor],
    way: str,
    *,
    rounds: int,
    count: int,
    settings: DesignSettings,
    seen: Callable[[int, Proposals, Tensor], None] | None = None,
) -> ScoredSequences:
    """Propose, measure, learn, again: the scored sequences with `rounds * count` new ones behind them, in their order.

    Args:
        scored: where it begins.
        measure: tokens (n, L) -> scores (n,); NaN where it failed, which costs a query and teaches nothing.
        way: one of `WAYS`.
        rounds: of measurements.
        count: sequences of a round.
        settings: of the way.
        seen: called after each round with its number, the proposals and their scores.

    Raises:
        FewstepError: as `propose`, or scores of another shape.
    """
    for round in range(rounds):
        made = propose(scored, way, count, settings, round)
        scores = measure(made.tokens).float()
        if scores.shape != (count,):
            raise FewstepError("a measurement is one number per sequence", value=tuple(scores.shape))
        scored = scored.joined(made.tokens, scores.masked_fill(~scores.isfinite(), torch.nan))
        if seen is not None:
            seen(round, made, scores)
    return scored


def best_so_far(scores: Tensor) -> Tensor:
    """The best score after each query (N,); NaN counts as none."""
    return scores.nan_to_num(nan=-torch.inf).cummax(0).values


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Letters that differ (A, B)."""
    return torch.stack([(a[:, None, i] != b[None, :, i]).float() for i in range(a.shape[1])]).sum(0)


def _unseen(tokens: Tensor, scored: ScoredSequences, others: Tensor) -> Tensor:
    """The rows that are neither scored nor among others, each once, in their order."""
    seen = set(map(tuple, scored.tokens.tolist())) | set(map(tuple, others.tolist()))
    rows = []
    for row in tokens.tolist():
        if tuple(row) not in seen:
            seen.add(tuple(row))
            rows.append(row)
    return torch.tensor(rows, dtype=torch.long).reshape(len(rows), tokens.shape[1])
