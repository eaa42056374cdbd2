"""Text for terminals that do not know every character."""

from __future__ import annotations

import codecs
import sys
import unicodedata
from typing import TextIO

_WORDS = {
    "α": "alpha", "σ": "sigma", "λ": "lambda", "ρ": "rho", "ε": "epsilon", "²": "^2", "×": "x", "→": "->", "…": "...",
    "↑": "(more)", "↓": "(less)", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "≥": ">=", "≤": "<=",
    "·": "*", "│": "|", "─": "-", "━": "-", "╭": "+", "╮": "+", "╯": "+", "╰": "+",
}  # fmt: skip
ERRORS = "fewstep.ascii"
"""Error handler of codecs that spells characters out."""


def spelled(text: str) -> str:
    """The text in ASCII: Greek letters by their names, accents dropped, what has no spelling as a question mark."""
    plain = "".join(_WORDS.get(character, character) for character in text)
    return unicodedata.normalize("NFKD", plain).encode("ascii", "replace").decode() if not plain.isascii() else plain


def spell_out(*streams: TextIO) -> None:
    """Let streams of another encoding than Unicode's spell characters out instead of raising an error."""
    codecs.register_error(ERRORS, lambda error: (_lost(error), error.end))  # type: ignore[attr-defined]
    for stream in streams or (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
        if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def _lost(error: Exception) -> str:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(spelled(character).replace("?", "") or "?" for character in error.object[error.start : error.end])
