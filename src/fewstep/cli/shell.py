"""What all commands share: errors without a traceback, examples in the help, consoles."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fewstep.ascii import spell_out
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from rich.console import Console

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a spent quota and a limit of file sizes say."""
EXAMPLES: list[str] = []
"""Every example shown in a help text; a test parses them all."""
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)

FASTER, SMALLER, TRAIN = "Make it faster", "Make it smaller", "Train"
LOOK, RUN = "Generate, look, save", "Recipes, numbers, this machine"
"""Under what the commands stand in the help: what people want."""


def finite(value: float | None) -> float | None:
    """Check of every option that takes a decimal number: `nan` and `inf` are no settings.

    Raises:
        typer.BadParameter: it is one of them.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


Guidance = Annotated[float, typer.Option(min=0, callback=finite, help="guidance_scale of the pipeline; 1 is without.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change any other setting of the recipe; may be repeated. Dots reach into sections.",
        rich_help_panel="Run",
    ),
]

CallArguments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An argument of the pipeline's call, height=256; repeatable."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what fewstep wrote there; files of others are never replaced.")
]
Pictures = Annotated[Path, typer.Argument(help="A picture, or a folder of them.")]
Results = Annotated[Path, typer.Option(help="Folder of the results, which have the names of the pictures given.")]


def end_with(failed: Mapping[str, str]) -> None:
    """The end of a command on many files: why some failed, by name, and status 1 if any did."""
    for name, reason in failed.items():
        console().print(f"[red]{name}[/red]: {reason}", highlight=False)
    if failed:
        raise typer.Exit(1)


class Commands(TyperGroup):
    """A group of commands that shows a FewstepError as one red message and exits with 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program; help and results are spelled out on terminals without Unicode."""
        spell_out()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command. FEWSTEP_DEBUG=1 lets the traceback through."""
        hush()
        before = _QUIET.set(_QUIET.get() or bool(ctx.params.get("quiet")))
        try:
            with _ended_cleanly():
                return super().invoke(ctx)
        except (FewstepError, OSError) as error:
            known = isinstance(error, FewstepError) or error.errno in FULL
            if not known or os.environ.get("FEWSTEP_DEBUG"):
                raise
            show_error(_whose() + (_full(error) if isinstance(error, OSError) else str(error)))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            if not _process():
                console(err=True).print("\nStopped. The same command goes on where it was.", style="yellow")
            raise typer.Exit(128 + (stop.args[0] if stop.args else signal.SIGINT)) from None
        finally:
            _QUIET.reset(before)


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """SIGTERM (a queue's time limit, `docker stop`) raises KeyboardInterrupt where the program is, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _process() -> int:
    """Number of this process among those that a launcher started."""
    return int(os.environ.get("RANK", 0)) if "LOCAL_RANK" in os.environ else 0


def _full(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    return f"cannot write{where}: {error.strerror}. Free some space; the same command then goes on where it was."


def _whose() -> str:
    """Which of several processes speaks. The first one speaks at once; the launcher then ends the others, so that a
    mistake that all make is told once."""
    number = _process()
    if not number:
        return ""
    time.sleep(8)
    return f"(process {number}) "


def hush() -> None:
    """Keep the libraries below from talking into our output; FEWSTEP_DEBUG=1 lets them. Call before importing them."""
    if os.environ.get("FEWSTEP_DEBUG"):
        return
    import logging
    import warnings

    for kind in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", kind)
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def examples(*commands: str) -> str:
    """The epilog of a help text."""
    EXAMPLES.extend(commands)
    return "[bold]Examples[/bold]\n\n" + "\n\n".join("  " + command.replace("[", r"\[") for command in commands)


def names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def call_arguments(settings: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs as arguments."""
    from fewstep.written import fitted, read_value

    call = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key.isidentifier() and equals):
            raise FewstepError("--set takes KEY=VALUE", value=setting, hint="Write --set height=256.")
        call[key] = fitted(read_value(text))
    return call


def console(err: bool = False) -> Console:
    """A rich console on stdout, or stderr for what is not the result."""
    from rich.console import Console

    return Console(stderr=err, highlight=False)


def suggest(*commands: str) -> None:
    """The next sensible commands, in one line: for people at a terminal, and not with --quiet."""
    out = console()
    if commands and out.is_terminal and not _QUIET.get():
        out.print("Next: " + "   or: ".join(commands), style="dim", markup=False, soft_wrap=True)


def show_error(message: str) -> None:
    """One red message on stderr."""
    from rich.markup import escape

    console(err=True).print(f"[bold red]Error:[/bold red] {escape(message)}")
