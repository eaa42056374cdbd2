"""How values show themselves: small tables of text in a terminal, the same as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Cells = Sequence[Sequence[str]]

WIDTH = 79
"""Characters of a line that fit any terminal."""


def text_table(header: Sequence[str], rows: Cells, width: int = WIDTH) -> str:
    """Columns side by side, the first to the left and the others to the right; lines that are too long are cut."""
    lines = [[text.replace("\n", " ") for text in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]
    return "\n".join(text if len(text) <= width else f"{text[: width - 3]}..." for text in texts)


def html_table(header: Sequence[str], rows: Cells, title: str = "") -> str:
    """A table with a title; all text is escaped."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"{html_title(title)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_title(title: str) -> str:
    """A line in bold, or nothing."""
    return f"<p><b>{escape(title)}</b></p>" if title else ""


def html_pictures(sources: Sequence[str], height: int = 96) -> str:
    """Pictures beside one another, by their `data:image/...` addresses."""
    shown = (f'<img src="{escape(s)}" style="height:{height}px;display:inline-block;margin:2px">' for s in sources)
    return f"<div>{''.join(shown)}</div>" if sources else ""
