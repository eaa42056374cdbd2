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


class Lines:
    """Lines of progress with speed and time left; nothing for work that is done before the first is due.

    Args:
        description: what is at work.
        total: how much there is to do.
        show: takes a line.
        unit: what the speed counts, per second; `per` of it are one of `total`.
        clock: in seconds.
    """

    def __init__(
        self,
        description: str,
        total: int,
        show: Callable[[str], None],
        *,
        unit: str = "",
        per: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.total, self.show, self.unit, self.per = description, total, show, unit, per
        self._clock, self._begun, self._last = clock, clock(), clock()
        self._first: int | None = None

    def __call__(self, done: int, note: str = "") -> None:
        """`done` of the total is done; the first call tells where this process began."""
        if self._first is None:
            self._first = done
        now = self._clock()
        if now - self._last < EVERY or done <= self._first:
            return
        self._last = now
        speed = (done - self._first) / (now - self._begun)
        left = time_left(max(0, self.total - done) / speed)
        rate = f"{speed * self.per:.3g}{f' {self.unit}' if self.unit else ''}/s"
        parts = [f"{self.description} {done}/{self.total}", note, rate, f"{left} left"]
        self.show("  " + " · ".join(part for part in parts if part))


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
    lines = Lines(description, total, line)
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
