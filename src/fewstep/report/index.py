"""One page for many runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from fewstep.report.blocks import LinkList
from fewstep.report.page import Page
from fewstep.runs.shown import REPORT, RunEntry


def index_page(entries: Sequence[RunEntry], folder: Path) -> Page:
    """Every run with a line and a picture.

    Args:
        entries: in the order of the page.
        folder: where the page will lie; links are relative to it.
    """
    finished = sum(entry.finished for entry in entries)
    items = [(_address(entry, folder), entry.title, _line(entry), entry.picture) for entry in entries]
    summary = f"{len(entries)} run{'' if len(entries) == 1 else 's'}, {finished} finished; the newest first."
    return Page("Runs", summary, [LinkList("", items)], label="fewstep runs")


def when(entry: RunEntry) -> str:
    """Day and minute of the last change, local time."""
    return datetime.fromtimestamp(entry.changed).strftime("%Y-%m-%d %H:%M")


def _line(entry: RunEntry) -> str:
    return " · ".join(filter(None, (when(entry), entry.kind, entry.path.name, entry.summary)))


def _address(entry: RunEntry, folder: Path) -> str:
    target = entry.path / REPORT if entry.finished else entry.path
    return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())
