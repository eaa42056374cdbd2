"""Plain text: tinyshakespeare, which ships with the package, and files of users, in three parts that lie apart."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import FewstepError, nearest
from fewstep.files import read_text

SHIPPED = Path(__file__).parent / "shakespeare" / "tinyshakespeare.txt"
PARTS = {"train": (0.0, 0.7), "judge": (0.7, 0.95), "test": (0.95, 1.0)}
"""Of a text, in the order of the file: what models learn from, what their judge learns from, what nobody saw."""
LARGEST = 256 << 20


def load_text(data: str | Path = "shakespeare", part: str = "train") -> str:
    """A part of a text.

    Args:
        data: "shakespeare", or a file of plain text.
        part: "train", "judge", "test" or "all"; cut at line breaks.

    Raises:
        FewstepError: an unknown part, or a text too short to be cut.
    """
    if part != "all" and part not in PARTS:
        raise FewstepError("unknown part of a text", value=part, hint=nearest(part, [*PARTS, "all"]))
    text = read_text(SHIPPED if data == "shakespeare" else data, most=LARGEST)
    if part == "all":
        return text
    begin, end = (_cut(text, share) for share in PARTS[part])
    if end - begin < 100:
        raise FewstepError("this text is too short to learn from", value=len(text), hint="Give some 100 kB.")
    return text[begin:end]


def _cut(text: str, share: float) -> int:
    """The line break nearest after that share of the text."""
    place = round(share * len(text))
    return place if place in (0, len(text)) else text.find("\n", place) + 1 or len(text)
