"""`fewstep stream`: video without end from a few-step student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.shell import LOOK, Overwrite, console, examples, finite
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.jobs.streaming import Streamed

POLICIES = "drop, static, ema (alpha 0.99), ema:ALPHA or append"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "stream",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep stream '3 7 fast' --frames 96 --out digits.gif",
            "fewstep stream '3 7 fast' --switch '48:1 2 slow' --cache ema:0.9 --report",
            "fewstep stream '3 7 fast' --frames 10000 --keep place --out part.webp",
        ),
    )(run)


def run(
    prompt: Annotated[str, typer.Argument(help="What is drawn; of the shipped student two digits and a speed.")],
    student: Annotated[str, typer.Option(help="A shipped student, or the folder of one.")] = "video-student",
    frames: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 96,
    switch: Annotated[
        list[str] | None, typer.Option(metavar="FRAME:PROMPT", help="Another prompt from about there; repeatable.")
    ] = None,
    cache: Annotated[
        str, typer.Option(help=f"What happens to old frames: {POLICIES}; the student's own unless given.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    rate: Annotated[float, typer.Option(min=0.1, callback=finite, help="Frames per second of the file.")] = 12.0,
    zoom: Annotated[int, typer.Option(min=1, help="Pixels of the file for each pixel.")] = 8,
    keep: Annotated[
        Path | None, typer.Option(help="Folder that knows where the stream stands; the same command goes on there.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Also a page beside the file.")] = False,
    out: Annotated[Path, typer.Option(help="A .gif, .webp or .png file that moves.")] = Path("stream.gif"),
    overwrite: Overwrite = False,
) -> None:
    """Draw a video chunk by chunk, each in a few network evaluations, in memory that does not grow."""
    from fewstep.files import check_free
    from fewstep.jobs import streaming
    from fewstep.report.images import check_image
    from fewstep.tasks.video.student import load_student

    check_image(out, overwrite, moving=True)
    page = out.with_suffix(".html")
    if report:
        check_free(page, overwrite=True)
    made = load_student(student)
    if cache:
        made = made.replace(policy=streaming.policy_of(cache, made.policy))
    drawn = streaming.draw(made, prompt, frames, dict(map(_switch, switch or [])), seed=seed, keep=keep)
    streaming.write(drawn, out, rate, zoom, overwrite)
    _say(drawn, out)
    if report:
        streaming.report(drawn, page, rate)
        console().print(f"The page lies in {page}")


def _switch(text: str) -> tuple[int, str]:
    frame, colon, words = text.partition(":")
    if not colon or not frame.isdecimal():
        raise FewstepError("a switch needs the form FRAME:PROMPT", value=text, hint="For example '48:1 2 slow'.")
    return int(frame), words


def _say(drawn: Streamed, out: Path) -> None:
    times = drawn.times
    console().print(
        f"[bold green]Wrote {len(drawn.frames)} frames[/bold green] to {out}: first chunk after "
        f"{1000 * times.first:.0f} ms, then {times.rate:.0f} frames per second "
        f"({drawn.evaluations} network evaluations per chunk, one of them for the cache; decoder {times.decoding:.0%})."
    )
