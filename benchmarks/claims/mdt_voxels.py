"""MDT-dist on shapes, which it was made for."""

from __future__ import annotations

import dataclasses

from claims.claim import Question
from claims.mdt import CLAIM as DIGITS
from claims.mdt import QUESTIONS

CLAIM = dataclasses.replace(
    DIGITS,
    asks="Occupancy grids of 8^3 (classes: those of the files given), EDM predictions, fully connected networks "
    f"instead of transformers on latents of shapes. {DIGITS.asks}",
    questions=(*QUESTIONS, Question("both", "consistency", "coverage", "1 step", higher=True)),
    voxels=True,
)
