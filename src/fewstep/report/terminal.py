"""The same tables on the terminal, side by side or, where that is too wide, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.ascii import spelled
from fewstep.report.blocks import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable

UNBOUNDED = 100_000
"""Columns of a terminal on which every table fits."""


def to_rich(table: Table) -> OnTerminal:
    """The table for a rich console; best values bold and marked, reference rows dim."""
    return OnTerminal(table)


@dataclass(frozen=True)
class OnTerminal:
    """A table that keeps every digit: columns that do not fit beside the others follow below, rows named again."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As rich asks for it."""
        table, ascii_only = self.table, options.ascii_only
        cells = [[_marked(cell, ascii_only) for cell in row] for row in table.cells()]
        columns = list(range(len(table.columns)))
        while columns or not table.columns:
            taken = columns[:1]
            for column in columns[1:]:
                wider = _drawn(table, cells, [*taken, column], ascii_only)
                if console.measure(wider, options=options.update(max_width=UNBOUNDED)).maximum > options.max_width:
                    break
                taken.append(column)
            yield _drawn(table, cells, taken, ascii_only, titled=taken == [] or taken[0] == 0)
            columns = columns[len(taken) :]
            if not table.columns:
                return


def _drawn(
    table: Table, cells: Sequence[Sequence[str]], taken: Sequence[int], ascii_only: bool, titled: bool = False
) -> RichTable:
    """Some columns of the table."""
    from rich import box
    from rich.table import Table as RichTable

    title = (_text(table.title, ascii_only) or None) if titled else None
    shown = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    shown.add_column(_text(table.corner, ascii_only), no_wrap=True)
    for j in taken:
        shown.add_column(_text(_headed(table.columns[j]), ascii_only), justify="right", overflow="fold")
    for row, line in zip(table.rows, cells, strict=True):
        style = "dim" if row.reference else None
        shown.add_row(_text(row.label, ascii_only), *(line[j] for j in taken), style=style)
    return shown


def _headed(column: Column) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", None: ""}[column.better]
    unit = f"\n{column.unit}" if column.unit else ""
    return f"{column.label}{arrow}{unit}"


def _marked(cell: Cell, ascii_only: bool) -> str:
    shown, interval, best = cell
    text = _text(shown, ascii_only)
    text += f"\n[dim]{_text(interval, ascii_only)}[/dim]" if interval else ""
    return f"[bold green]{text}[/bold green]" if best else text


def _text(text: str, ascii_only: bool) -> str:
    from rich.markup import escape

    return escape(spelled(text) if ascii_only else text)
