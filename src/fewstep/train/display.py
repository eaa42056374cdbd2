"""What a training shows on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fewstep.runs.progress import Lines, line, screen

if TYPE_CHECKING:
    from accelerate import Accelerator
OFTEN = 1.0
"""Seconds between two looks at the loss: each makes the device wait."""


class Display:
    """Progress with loss, pictures per second and time left: a bar, or a line every half minute without a terminal.

    Args:
        show: takes a line.
        clock: in seconds.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        steps: int,
        quiet: bool = False,
        show: Callable[[str], None] = line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = screen()
        self.hidden = quiet or not accelerator.is_main_process
        self.plain = not self.hidden and not console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]} img/s · left"),
            TimeRemainingColumn(),
            console=console,
            disable=self.hidden or self.plain,
            transient=True,
        )
        self.steps, self.loss, self.start, self.lines = steps, 0.0, (0, 0.0), None
        self._say, self._clock, self._last = show, clock, clock() - OFTEN

    lines: Lines | None

    def __enter__(self):  # type: ignore[no-untyped-def]
        self.bar.__enter__()
        self.task = self.bar.add_task("train", total=self.steps, loss="?", rate="?")
        return self._show

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)  # type: ignore[arg-type]

    def _show(self, step: int, seconds: float, numbers: Mapping[str, Any], batch: int) -> None:
        if self.lines is None:
            self.start = (step - 1, seconds)
            self.lines = Lines("training, step", self.steps, self._say, unit="img", per=batch, clock=self._clock)
            self.lines(step - 1)
        if self.hidden or self._clock() - self._last < OFTEN:
            return
        self._last = self._clock()
        loss = float(numbers["loss"])
        self.loss = loss if self.loss == 0.0 else 0.9 * self.loss + 0.1 * loss
        rate = (step - self.start[0]) * batch / max(1e-9, seconds - self.start[1])
        self.bar.update(self.task, completed=step, loss=f"{self.loss:.4f}", rate=f"{rate:.0f}")
        if self.plain:
            self.lines(step, f"loss {self.loss:.4f}")
