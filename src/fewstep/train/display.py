"""What a training shows on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fewstep.train.loop import Progress as Reached


class Display:
    """Progress with loss, pictures per second and time left; plain lines where there is no terminal."""

    def __init__(self, accelerator: Accelerator, steps: int, quiet: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · {task.fields[rate]} img/s · left"),
            TimeRemainingColumn(),
            disable=quiet or not accelerator.is_main_process,
            transient=True,
        )
        self.plain = not quiet and accelerator.is_main_process and not self.bar.console.is_terminal
        self.steps, self.loss, self.start, self.quiet = steps, 0.0, (0, 0.0), quiet

    def __enter__(self):  # type: ignore[no-untyped-def]
        self.bar.disable = self.bar.disable or self.plain
        self.bar.__enter__()
        self.task = self.bar.add_task("train", total=self.steps, loss="?", rate="?")
        return self._show

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)  # type: ignore[arg-type]

    def _show(self, progress: Reached, numbers: Mapping[str, Any], batch: int) -> None:
        if self.start == (0, 0.0):
            self.start = (progress.step - 1, progress.seconds)
        if self.quiet or progress.step % 10:
            return
        loss = float(numbers["loss"])
        self.loss = loss if self.loss == 0.0 else 0.9 * self.loss + 0.1 * loss
        done = progress.step - self.start[0]
        rate = done * batch / max(1e-9, progress.seconds - self.start[1])
        text, speed = f"{self.loss:.4f}", f"{rate:.0f}"
        self.bar.update(self.task, completed=progress.step, loss=text, rate=speed)
        if self.plain and progress.step % 100 == 0:
            left = (self.steps - progress.step) * batch / max(rate, 1e-9)
            print(f"step {progress.step}/{self.steps}  loss {text}  {speed} img/s  {left:.0f} s left", flush=True)
