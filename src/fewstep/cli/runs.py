"""`fewstep runs`: what was run in a folder, the newest first, with a page to open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.shell import LOOK, console, examples


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "runs", rich_help_panel=LOOK, epilog=examples("fewstep runs", "fewstep runs experiments --page all.html")
    )(run)


def run(
    folder: Annotated[Path, typer.Argument(help="Runs are looked for in it and below it.")] = Path("runs"),
    page: Annotated[Path | None, typer.Option(help="Where the index is written; FOLDER/index.html by default.")] = None,
) -> None:
    """List all runs of a folder, the newest first, and write an index with a line and a picture of each."""
    from rich.table import Table

    from fewstep.report import save_page
    from fewstep.report.index import index_page, when
    from fewstep.runs.shown import runs_in

    found = runs_in(folder)
    if not found:
        console().print(f"There are no runs in {folder}.")
        return
    table = Table("when", "run", "kind", "found", box=None)
    for entry in found:
        table.add_row(when(entry), str(entry.path), entry.kind, entry.title, style="" if entry.finished else "dim")
    console().print(table)
    place = folder / "index.html" if page is None else page
    console().print(f"Index: {save_page(index_page(found, place.parent), place)}")
