"""What a trunk may be told beside the sequence: alignment statistics, and distances that are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.data.proteins import LETTERS, letters_of
from fewstep.errors import FewstepError
from fewstep.tasks.proteins.scores import distances

RANGE = (3, 20.0)
"""Restraints join residues so many apart along the chain at least, and so many angstrom apart in space at most."""
MOST_ROWS = 1000
"""Rows of an alignment that are read."""
ERROR = 0.5
"""Standard deviation of the distances that a restraint tells, in angstrom."""


def alignment_profile(rows: Sequence[str], pseudocount: float = 5.0) -> Tensor:
    """Statistics (L, 21) of an alignment for the residues of its first row: the embedding of the shipped model.

    Shares of the twenty amino acids in each column, drawn towards those of the whole alignment by a pseudocount, and
    the share of rows that have a residue there. Rows count by one over how many are 80 % the same.

    Args:
        rows: of equal length, gaps as - or .; a thousand are read; the first is the sequence that is folded.
        pseudocount: rows that the background stands for.

    Raises:
        FewstepError: no rows, or rows of different lengths.
    """
    if not rows or len({len(row) for row in rows}) != 1:
        raise FewstepError("an alignment has rows of one length", value=len(rows), hint="Give aligned sequences.")
    kept = torch.stack([letters_of(row) for row in rows[:MOST_ROWS]])
    same = torch.stack([(kept == row).double().mean(1) for row in kept])
    weight = 1 / (same > 0.8).sum(1).double()
    present = torch.nn.functional.one_hot(kept, len(LETTERS) + 1)[..., :-1].double() * weight[:, None, None]
    counts = present.sum(0)
    background = counts.sum(0) / counts.sum().clamp(min=1e-9)
    shares = (counts + pseudocount * background) / (counts.sum(1, keepdim=True) + pseudocount)
    covered = counts.sum(1, keepdim=True) / weight.sum()
    own = torch.tensor([letter not in "-." for letter in rows[0]])
    return torch.cat([shares, covered], 1)[own].float()


def restraints_between(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Distances (L, L) between some pairs of a structure (L, 3), in angstrom with an error of half a one; else 0."""
    apart = torch.arange(len(x))
    true = distances(x)
    room = ((apart[:, None] - apart) >= RANGE[0]) & (true < RANGE[1])
    chosen = room & (torch.rand(true.shape, generator=generator) < share)
    told = torch.where(chosen, (true + ERROR * torch.randn(true.shape, generator=generator)).clamp(min=2.0), 0.0)
    return told + told.T
