"""What long work shows: a bar on a terminal, and a line every half minute where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 30.0
"""Seconds between two lines."""


def progress_lines(
    description: str,
    total: int,
    show: Callable[[str], None],
    *,
    unit: str = "",
    per: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[..., None]:
    """Lines of progress with speed and time left; nothing for work that is done before the first is due.

    Args:
        description: what is at work.
        total: how much there is to do.
        show: takes a line.
        unit: what the speed counts, per second; `per` of it are one of `total`.
        per: see `unit`.
        clock: in seconds.

    Returns:
        (how much is done, note=""): to be called as it goes; the first call tells where this process began.
    """
    begun = last = clock()
    first: int | None = None

    def tell(done: int, note: str = "") -> None:
        nonlocal first, last
        if first is None:
            first = done
        now = clock()
        if now - last < EVERY or done <= first:
            return
        last = now
        speed = (done - first) / (now - begun)
        left = time_left(max(0, total - done) / speed)
        rate = f"{speed * per:.3g}{f' {unit}' if unit else ''}/s"
        parts = [f"{description} {done}/{total}", note, rate, f"{left} left"]
        show("  " + " · ".join(part for part in parts if part))

    return tell


def time_left(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def progress(description: str, total: int, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show how far some work is; yields `advance(count=1, note="")`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console, done = screen(), 0
    lines = progress_lines(description, total, line)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            bar.update(task, advance=count, note=note)
            if not quiet and not console.is_terminal:
                lines(done, note)

        if not quiet and not console.is_terminal:
            lines(0)
        yield advance


def line(text: str) -> None:
    """One line where no terminal is, whole however long it is."""
    screen().print(text, highlight=False, markup=False, soft_wrap=True)


def screen() -> Console:
    """Where runs talk: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def announce(what: str, quiet: bool) -> None:
    """Say what begins; on a terminal the line of its end takes its place."""
    if not quiet:
        console = screen()
        console.print(f"▸ {what}", style="bold", highlight=False, end="\r" if console.is_terminal else "\n")
