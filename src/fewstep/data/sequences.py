"""Sequences with scores: the shipped GB1 landscape, and CSV files of users."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_tensors, read_text, write_tensors

FOLDER = Path(__file__).parent / "gb1"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True, eq=False)
class ScoredSequences:
    """Sequences of one length, and what was measured of them.

    Attributes:
        tokens: (N, L), places of their letters in `alphabet`.
        scores: (N,), more is better; NaN where a measurement failed.
        alphabet: the letters.

    Raises:
        FewstepError: another number of scores, or letters that are not there.
    """

    tokens: Tensor
    scores: Tensor
    alphabet: str

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.scores.shape != self.tokens.shape[:1]:
            value = (tuple(self.tokens.shape), tuple(self.scores.shape))
            raise FewstepError("sequences (N, L) need one score each", value=value)
        if len(self.tokens) and not 0 <= int(self.tokens.min()) <= int(self.tokens.max()) < len(self.alphabet):
            raise FewstepError(f"tokens lie from 0 to {len(self.alphabet) - 1}", value=int(self.tokens.max()))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Letters of a sequence."""
        return self.tokens.shape[1]

    def words(self) -> list[str]:
        """The sequences as text."""
        return ["".join(self.alphabet[token] for token in row) for row in self.tokens.tolist()]

    def chosen(self, rows: Tensor) -> ScoredSequences:
        """Some of them."""
        return ScoredSequences(self.tokens[rows], self.scores[rows], self.alphabet)

    def joined(self, tokens: Tensor, scores: Tensor) -> ScoredSequences:
        """With further ones."""
        return ScoredSequences(torch.cat([self.tokens, tokens]), torch.cat([self.scores, scores]), self.alphabet)


@cache
def gb1_landscape() -> Tensor:
    """Fitness of every variant of protein G's domain B1 at the sites 39, 40, 41 and 54, (20, 20, 20, 20) float32.

    Relative to the wild type VDGV, whose is 1; NaN where it was not measured (10,639 of 160,000). Letters in the order
    of `AMINO_ACIDS`. Wu et al., eLife 5:e16965 (2016), as in FLIP; half precision.
    """
    return read_tensors(FOLDER / "landscape.safetensors")["fitness"].float()


def build_gb1(npz: str | Path) -> None:
    """Write the shipped landscape from an npz with `tokens` (N, 4), `fitness` (N,) and `alphabet`.

    Raises:
        FewstepError: letters in another order.
    """
    import numpy as np

    with np.load(npz, allow_pickle=False) as arrays:
        tokens, fitness, alphabet = (
            arrays["tokens"].astype(np.int64),
            arrays["fitness"],
            "".join(arrays["alphabet"].tolist()),
        )
    if alphabet != AMINO_ACIDS:
        raise FewstepError("the letters stand in another order", value=alphabet, hint=AMINO_ACIDS)
    whole = torch.full((20,) * 4, math.nan, dtype=torch.float16)
    whole[tuple(torch.from_numpy(tokens).T)] = torch.from_numpy(fitness).half()
    write_tensors(FOLDER / "landscape.safetensors", {"fitness": whole}, over="all")


def read_scored(path: str | Path, alphabet: str | None = None) -> ScoredSequences:
    """Sequences of a CSV file with the columns `sequence` and `score`.

    Args:
        path: of the file.
        alphabet: the letters; those that occur unless given.

    Raises:
        FewstepError: other columns, an empty file, sequences of several lengths, letters outside of the alphabet, a
            score that is no number, or none that is finite.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if not rows or not {"sequence", "score"} <= set(rows[0]):
        hint = "The first line must be `sequence,score`."
        raise FewstepError(
            f"{path} has no columns sequence and score", value=list(rows[0]) if rows else None, hint=hint
        )
    words = [(row["sequence"] or "").strip() for row in rows]
    tokens, letters = tokens_of_words(words, alphabet)
    try:
        scores = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise FewstepError(
            f"{path}: a score is no number: {error}", hint="Leave the line out, or write nan."
        ) from error
    if not bool(scores.isfinite().any()):
        raise FewstepError(f"{path} has no finite score")
    return ScoredSequences(tokens, scores.masked_fill(~scores.isfinite(), math.nan), letters)


def tokens_of_words(words: Sequence[str], alphabet: str | None = None) -> tuple[Tensor, str]:
    """Tokens (N, L) of words of one length, and the letters they count in: all that occur unless given.

    Raises:
        FewstepError: words of several lengths, an empty one, or letters outside of the alphabet.
    """
    lengths = {len(word) for word in words}
    if len(lengths) != 1 or not min(lengths):
        hint = "Align them, and write gaps as a letter, such as -."
        raise FewstepError("sequences must have one length", value=sorted(lengths)[:5], hint=hint)
    letters = alphabet or "".join(sorted(set("".join(words))))
    for number, word in enumerate(words):
        strange = set(word) - set(letters)
        if strange:
            hint = f"Known letters: {letters}"
            raise FewstepError(f"sequence {number + 1} has unknown letters", value="".join(sorted(strange)), hint=hint)
    return torch.tensor([[letters.index(letter) for letter in word] for word in words]), letters
