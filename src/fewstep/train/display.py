"""What a training shows on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fewstep.runs.progress import line, progress_lines, screen

if TYPE_CHECKING:
    from accelerate import Accelerator
OFTEN = 1.0
"""Seconds between two looks at the loss: each makes the device wait."""


@contextmanager
def display(
    accelerator: Accelerator,
    steps: int,
    quiet: bool = False,
    say: Callable[[str], None] = line,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, float, Mapping[str, Any], int], None]]:
    """Progress with loss, pictures per second and time left: a bar, or a line every half minute without a terminal.

    Args:
        accelerator: the first process shows it.
        steps: of the training.
        quiet: show nothing.
        say: takes a line.
        clock: in seconds.

    Yields:
        (step, seconds of the training, its numbers, pictures per step), to be called after each step.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = screen()
    hidden = quiet or not accelerator.is_main_process
    plain = not hidden and not console.is_terminal
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]} · {task.fields[rate]} img/s · left"),
        TimeRemainingColumn(),
    )
    lines: Callable[..., None] | None = None
    average, start, last = 0.0, (0, 0.0), clock() - OFTEN
    with Progress(*columns, console=console, disable=hidden or plain, transient=True) as bar:
        task = bar.add_task("train", total=steps, loss="?", rate="?")

        def show(step: int, seconds: float, numbers: Mapping[str, Any], batch: int) -> None:
            nonlocal lines, average, start, last
            if lines is None:
                start = (step - 1, seconds)
                lines = progress_lines("training, step", steps, say, unit="img", per=batch, clock=clock)
                lines(step - 1)
            if hidden or clock() - last < OFTEN:
                return
            last = clock()
            loss = float(numbers["loss"])
            average = loss if average == 0.0 else 0.9 * average + 0.1 * loss
            rate = (step - start[0]) * batch / max(1e-9, seconds - start[1])
            bar.update(task, completed=step, loss=f"{average:.4f}", rate=f"{rate:.0f}")
            if plain:
                lines(step, f"loss {average:.4f}")

        yield show
