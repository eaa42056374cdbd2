"""Run directories for people: what a report found, in a notebook and in an index of many."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import yaml

from fewstep.errors import FewstepError
from fewstep.runs.folder import LOG, RECIPE, is_run
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


@dataclass(frozen=True)
class RunEntry:
    """One line of an index of runs.

    Attributes:
        path: its directory.
        kind: of its recipe, `unknown` where that cannot be read.
        changed: when something was last written there, in seconds since 1970.
        title: of its report; without one how far it is.
        summary: of its report.
        picture: the first of its report, as a data URI; empty without one.
        finished: whether there is a report.
    """

    path: Path
    kind: str
    changed: float
    title: str
    summary: str
    picture: str
    finished: bool


def runs_in(folder: Path, depth: int = 4) -> list[RunEntry]:
    """The runs in a folder and in folders below it, the newest first; links are not followed.

    Raises:
        FewstepError: there is no such folder.
    """
    if not folder.is_dir():
        raise FewstepError(
            "there is no such folder", value=str(folder), hint="Runs lie in `runs` unless told otherwise."
        )
    return sorted(map(_entry, _below(folder, depth)), key=lambda entry: -entry.changed)


def _below(folder: Path, depth: int) -> list[Path]:
    if is_run(folder):
        return [folder]
    try:
        inner = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
    except PermissionError:
        return []
    return [run for p in inner for run in _below(p, depth - 1)] if depth else []


def _entry(path: Path) -> RunEntry:
    try:
        recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
        kind = str(recipe.get("kind", "unknown"))
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        kind = "unknown"
    changed = max((p.stat().st_mtime for p in (path / LOG, path / REPORT) if p.is_file()), default=0.0)
    found = _read(path / REPORT)
    if found is None:
        finished = (path / REPORT).is_file()
        title = "a report too large to look into" if finished else run_summary(path)
        return RunEntry(path, kind, changed, title, "", "", finished)
    title, picture = found.texts.get("h1", path.name), (found.pictures or [""])[0]
    return RunEntry(path, kind, changed, title, found.texts.get("summary", ""), picture, True)


def run_page(path: Path) -> str:
    """The title, the findings, the first table and the first pictures of the report as HTML, with its place."""
    found = _read(path / REPORT)
    if found is None:
        return html_title(run_summary(path))
    numbers = [list(pair) for pair in zip(found.labels, found.values, strict=False)]
    parts = [
        html_title(found.texts.get("h1", "")),
        f"<p>{escape(found.texts.get('summary', ''))}</p>",
        html_table(["", "found"], numbers) if numbers else "",
        html_table(found.table[0], found.table[1:]) if len(found.table) > 1 else "",
        html_pictures(found.pictures[:PICTURES]),
        f"<p><code>{escape(str(path / REPORT))}</code></p>",
    ]
    return "".join(parts)


def _read(report: Path) -> _Findings | None:
    """What a report found; None where there is none, or one too large to look into."""
    if not report.is_file() or report.stat().st_size > _LARGEST:
        return None
    found = _Findings()
    found.feed(report.read_text(encoding="utf-8", errors="replace"))
    return found


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
