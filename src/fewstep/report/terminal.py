"""The same tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.report.blocks import Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def to_rich(table: Table) -> RichTable:
    """The table for a rich console; best values bold and marked, reference rows dim."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(box=box.SIMPLE_HEAD, title=escape(table.title) or None, title_justify="left", title_style="bold")
    shown.add_column(escape(table.corner), no_wrap=True)
    for column in table.columns:
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[column.better]
        unit = f"\n{column.unit}" if column.unit else ""
        shown.add_column(escape(f"{column.label}{arrow}{unit}"), justify="right")
    for row, cells in zip(table.rows, table.cells(), strict=True):
        texts = []
        for cell in cells:
            text = escape(cell.text) + (f"\n[dim]{escape(cell.interval)}[/dim]" if cell.interval else "")
            texts.append(f"[bold green]{text}[/bold green]" if cell.best else text)
        shown.add_row(escape(row.label), *texts, style="dim" if row.reference else None)
    return shown
