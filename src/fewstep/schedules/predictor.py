"""The predictor of S3: which of two schedules will be better, learned from those already evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.schedules.candidate import Candidate
from fewstep.schedules.pool import PoolEntry
from fewstep.schedules.space import ScheduleSpace

FIRSTS = ("network", "zero", "gaussian", "mean")
FREQUENCIES = 4


class Predictor(nn.Module):
    """Step embeddings, an LSTM over them and a linear head; one score per schedule, higher is better.

    Only the order of its scores means anything: it is trained with a hinge on pairs (arXiv 2312.07243, section 4.2).
    """

    def __init__(self, space: ScheduleSpace, width: int = 32) -> None:
        super().__init__()
        self.space = space
        features = 2 * FREQUENCIES + 1 + 4 + len(space.forms) + 5 + 4 + len(FIRSTS)
        self.embed = nn.Sequential(nn.Linear(features, width), nn.SiLU())
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B,) of padded step features (B, K, F) with these lengths (B,)."""
        hidden, _ = self.lstm(self.embed(steps))
        return self.head(hidden[torch.arange(len(steps)), lengths - 1]).squeeze(1)

    @classmethod
    def trained(cls, space: ScheduleSpace, entries: Sequence[PoolEntry], seed: int, rounds: int = 150) -> Predictor:
        """A predictor of these evaluations."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            predictor = cls(space)
            steps, lengths = predictor._encoded([entry.candidate for entry in entries])
            values = torch.tensor([entry.value for entry in entries])
            optimiser = torch.optim.AdamW(predictor.parameters(), lr=5e-3, weight_decay=1e-2)
            margin = 0.1
            with torch.enable_grad():
                for _ in range(rounds):
                    scores = predictor(steps, lengths)
                    gap = scores.unsqueeze(1) - scores.unsqueeze(0)
                    better = values.unsqueeze(1) > values.unsqueeze(0)
                    loss = (margin - gap)[better].clamp(min=0).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        return predictor.eval()

    @torch.no_grad()
    def scores(self, candidates: Sequence[Candidate]) -> Tensor:
        """Predicted scores (B,)."""
        return self(*self._encoded(candidates))

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, those it would bet on first."""
        return [candidates[k] for k in self.scores(candidates).argsort(descending=True, stable=True).tolist()]

    def _encoded(self, candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        rows = [torch.tensor([self._step(c, k) for k in range(len(c.times))]) for c in candidates]
        lengths = torch.tensor([len(row) for row in rows])
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def _step(self, candidate: Candidate, k: int) -> list[float]:
        decision = candidate.decisions[k]
        place = self.space.place_of(candidate.times[k])
        waves = [f(math.pi * 2**i * place) for i in range(FREQUENCIES) for f in (math.sin, math.cos)]
        skipped = len(candidate.skipped[k]) / self.space.model.blocks if candidate.skipped else 0.0
        forms = self.space.forms
        return [
            place, *waves, *_one_hot(decision.order - 1, 4), *_one_hot(forms.index(decision.form), len(forms)),
            float(decision.points or 0), 10 * decision.relax, float(decision.corrector), decision.tau, skipped,
            *(20 * (scale - 1) for scale in candidate.scales), *_one_hot(FIRSTS.index(candidate.first), len(FIRSTS)),
        ]  # fmt: skip


def _one_hot(index: int, count: int) -> list[float]:
    return [float(i == index) for i in range(count)]
