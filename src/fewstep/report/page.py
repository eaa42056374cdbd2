"""From blocks to one HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.files import write_text
from fewstep.report.blocks import Block

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Page:
    """A report: what was found in one sentence, then the blocks that show it."""

    title: str
    summary: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    label: str = "fewstep report"
    footer: str = ""


def render(page: Page) -> str:
    """The page as one self-contained HTML document; all text is escaped."""
    anchors = [f"{_slug(block.title)}-{i}" for i, block in enumerate(page.blocks)]
    contents = [(a, block.title) for a, block in zip(anchors, page.blocks, strict=True) if block.title]
    return _template().render(page=page, blocks=list(zip(anchors, page.blocks, strict=True)), contents=contents)


def save_page(page: Page, path: str | Path) -> Path:
    """Write the page atomically; returns the path. Only an earlier page of fewstep is replaced (FewstepError)."""
    write_text(path, render(page))
    return Path(path)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
