"""A run directory for people: what its report found, in a notebook."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser
from pathlib import Path

from fewstep.shown import html_pictures, html_table, html_title

REPORT = "report.html"
PICTURES = 6
_LARGEST = 50_000_000
"""Bytes of a report that is still read."""


def run_summary(path: Path) -> str:
    """One line: where it lies, how many units are finished, and whether there is a report."""
    done = len(list((path / "units").rglob("*.json")))
    report = ", with a report" if (path / REPORT).is_file() else ""
    return f"Run({str(path)!r}: {done} finished unit{'' if done == 1 else 's'}{report})"


def run_page(path: Path) -> str:
    """The title, the findings, the first table and the first pictures of the report as HTML, with its place."""
    report = path / REPORT
    if not report.is_file() or report.stat().st_size > _LARGEST:
        return html_title(run_summary(path))
    found = _Findings()
    found.feed(report.read_text(encoding="utf-8", errors="replace"))
    numbers = [list(pair) for pair in zip(found.labels, found.values, strict=False)]
    parts = [
        html_title(found.texts.get("h1", "")),
        f"<p>{escape(found.texts.get('summary', ''))}</p>",
        html_table(["", "found"], numbers) if numbers else "",
        html_table(found.table[0], found.table[1:]) if len(found.table) > 1 else "",
        html_pictures(found.pictures[:PICTURES]),
        f"<p><code>{escape(str(report))}</code></p>",
    ]
    return "".join(parts)


class _Findings(HTMLParser):
    """Texts of a page of `fewstep.report`: nothing of its markup is passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.values: list[str] = []
        self.labels: list[str] = []
        self.table: list[list[str]] = []
        self.pictures: list[str] = []
        self._tables, self._numbers, self._into = 0, False, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Where the coming text belongs."""
        known = dict(attrs)
        kind = known.get("class") or ""
        if tag == "div":
            self._numbers = kind == "numbers" or (self._numbers and not kind)
        elif tag == "table":
            self._tables += 1
        elif tag == "img" and (known.get("src") or "").startswith("data:image/"):
            self.pictures.append(str(known["src"]))
        elif self._tables == 1 and tag == "tr":
            self.table.append([])
        elif self._tables == 1 and tag in ("th", "td"):
            self.table[-1].append("")
            self._into = "cell"
        elif tag == "h1" or (tag == "p" and kind == "summary"):
            self._into = kind or tag
        elif self._numbers and tag in ("strong", "span"):
            (self.values if tag == "strong" else self.labels).append("")
            self._into = tag
        elif tag == "small" and self._into == "cell":
            self.table[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        """The text is over; marks within a cell do not end it."""
        inside = self._into == "cell" and tag not in ("th", "td")
        if tag in ("th", "td", "h1", "p", "strong", "span") and not inside:
            self._into = ""

    def handle_data(self, data: str) -> None:
        """The text itself."""
        text = data.strip()
        if not text or not self._into:
            return
        if self._into == "cell":
            self.table[-1][-1] += text
        elif self._into in ("strong", "span"):
            (self.values if self._into == "strong" else self.labels)[-1] += text
        else:
            self.texts[self._into] = self.texts.get(self._into, "") + text
