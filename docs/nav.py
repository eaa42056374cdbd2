"""A hook of mkdocs: an entry FOLDER/* of the navigation stands for the pages of the folder, in order of their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """The configuration with every such entry written out."""
    config["nav"] = _written_out(config["nav"], Path(config["docs_dir"]))
    return config


def _written_out(entry: Any, docs: Path) -> Any:
    if isinstance(entry, dict):
        return {title: _written_out(below, docs) for title, below in entry.items()}
    if isinstance(entry, list):
        return [found for below in entry for found in _as_list(_written_out(below, docs))]
    if isinstance(entry, str) and entry.endswith("/*"):
        return [file.relative_to(docs).as_posix() for file in sorted(docs.glob(f"{entry[:-2]}/[!R]*.md"))]
    return entry


def _as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]
