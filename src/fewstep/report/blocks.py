"""The pieces a report is made of, as plain values; `page.html.j2` knows how each looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fewstep.errors import FewstepError

LONG = 24
"""Rows above which a table is folded."""


@dataclass(frozen=True)
class Column:
    """A column of numbers: its unit, which direction is better (None: nobody wins), and digits after the point."""

    label: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int = 3
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row of a table. `reference` rows (a teacher, a null) are shown but do not compete for the best value.

    A value is a number, text, None, or anything with mean, low, high (as keys or as attributes).
    """

    label: str
    values: Sequence[Any]
    note: str = ""
    reference: bool = False


Cell = tuple[str, str, bool]
"""A value made ready to be shown: as text, its interval (empty without one), whether it is the best of its column."""


@dataclass(frozen=True)
class Table:
    """Rows by columns; the best value of each column is marked.

    Raises:
        FewstepError: a row with another number of values than there are columns.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[TableRow]
    text: str = ""
    corner: str = ""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise FewstepError(
                    f"row {row.label!r} of table {self.title!r} needs {len(self.columns)} values", value=len(row.values)
                )

    @property
    def long(self) -> bool:
        """Whether the page folds it behind a line to tap."""
        return len(self.rows) > LONG

    def cells(self) -> list[list[Cell]]:
        """Every value as text, with its interval and whether it is the best of its column."""
        best = [self._best(j) for j in range(len(self.columns))]
        return [
            [_cell(value, self.columns[j].digits, i in best[j]) for j, value in enumerate(row.values)]
            for i, row in enumerate(self.rows)
        ]

    def _best(self, j: int) -> set[int]:
        """Rows that win column j; ties at the shown precision win together, a lone competitor wins nothing."""
        column = self.columns[j]
        numbers = {
            i: round(number, column.digits)
            for i, row in enumerate(self.rows)
            if not row.reference and (number := _number(row.values[j])) is not None
        }
        if column.better is None or len(numbers) < 2:
            return set()
        winner = (max if column.better == "higher" else min)(numbers.values())
        return {i for i, number in numbers.items() if number == winner}


@dataclass(frozen=True)
class LinkList:
    """Other pages: (address, title, a line about it, picture as a data URI or empty) each."""

    title: str
    items: Sequence[tuple[str, str, str, str]]
    text: str = ""
    kind: ClassVar[str] = "links"


@dataclass(frozen=True)
class ImageGrid:
    """Images by rows (prompts, equal seeds) and columns (systems).

    Args:
        images: `images[row][column]`, each a tensor (3, H, W) in [0, 1] or a data URI.
        size: width in CSS pixels on a wide screen; small images are enlarged without smoothing.

    Raises:
        FewstepError: the captions do not fit the images.
    """

    title: str
    images: Sequence[Sequence[Any]]
    rows: Sequence[str]
    columns: Sequence[str]
    text: str = ""
    size: int = 112
    pixelated: bool = True
    kind: ClassVar[str] = "grid"

    def __post_init__(self) -> None:
        if len(self.images) != len(self.rows) or any(len(line) != len(self.columns) for line in self.images):
            raise FewstepError(
                f"grid {self.title!r}: images must be {len(self.rows)} rows of {len(self.columns)}",
                value=[len(line) for line in self.images],
            )
        for item in (item for line in self.images for item in line if isinstance(item, str)):
            _check_inline(self.title, item)

    def sources(self) -> list[list[str]]:
        """Every image as a data URI."""
        from fewstep.report.images import data_uri

        return [[item if isinstance(item, str) else data_uri(item) for item in line] for line in self.images]


@dataclass(frozen=True)
class Figure:
    """A drawing of `fewstep.report.figures` (inline SVG) or an image as a data URI, with a caption."""

    title: str
    picture: str
    text: str = ""
    kind: ClassVar[str] = "figure"

    def __post_init__(self) -> None:
        if not self.is_svg:
            _check_inline(self.title, self.picture)

    @property
    def is_svg(self) -> bool:
        """Whether the picture is inline SVG; anything else is a data URI."""
        return self.picture.startswith("<svg")


@dataclass(frozen=True)
class TokenStrip:
    """Lines of tokens, each shaded by a number in [0, 1], such as when it was revealed: 0 is pale.

    Args:
        rows: caption and (token, number) of each line; None for a token that was given.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]]
    text: str = ""
    kind: ClassVar[str] = "strip"

    def shaded(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Captions, and tokens with their shade in per cent, empty for those that were given."""
        return [
            (caption, [(token, "" if at is None else f"{10 + 70 * min(max(at, 0), 1):.0f}") for token, at in tokens])
            for caption, tokens in self.rows
        ]


@dataclass(frozen=True)
class Highlights:
    """A line of large numbers, which a reader should remember: (value, label, note) of each."""

    title: str
    items: Sequence[tuple[str, str, str]]
    text: str = ""
    kind: ClassVar[str] = "highlights"


@dataclass(frozen=True)
class FactList:
    """Names and values: environment, settings."""

    title: str
    facts: Mapping[str, Any]
    text: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Code:
    """A command or a few lines of Python, as typed."""

    title: str
    code: str
    text: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Note:
    """A paragraph; `tone="warning"` for what a reader must not overlook. Blank lines separate paragraphs."""

    text: str
    title: str = ""
    tone: Literal["plain", "warning"] = "plain"
    kind: ClassVar[str] = "note"


Block = Table | LinkList | ImageGrid | Figure | Highlights | FactList | Code | Note | TokenStrip


def _check_inline(title: str, picture: str) -> None:
    if not picture.startswith("data:image/"):
        raise FewstepError(
            f"{title!r}: a report is self-contained, its pictures are data URIs",
            value=picture[:60],
            hint="Use fewstep.report.images.data_uri.",
        )


def _cell(value: Any, digits: int, best: bool) -> Cell:
    if value is None:
        return "–", "", False
    number = _number(value)
    if number is None:
        return str(value), "", False
    ends = [_field(value, end) for end in ("low", "high")]
    interval = f"{_shown(ends[0], digits)} to {_shown(ends[1], digits)}" if None not in ends else ""
    return _shown(number, digits), interval, best


def _number(value: Any) -> float | None:
    """The number a value stands for, None for text."""
    if isinstance(value, str | bool) or value is None:
        return None
    mean = _field(value, "mean")
    if mean is not None:
        return mean if math.isfinite(mean) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _field(value: Any, name: str) -> float | None:
    if isinstance(value, int | float | str):
        return None
    found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return float(found) if isinstance(found, int | float) else None


def _shown(number: float | None, digits: int) -> str:
    return "–" if number is None else f"{number:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")
