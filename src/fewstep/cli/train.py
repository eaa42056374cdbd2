"""`fewstep train`: one training stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import following, known
from fewstep.cli.shell import TRAIN, Overrides, console, examples, suggest


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "train",
        rich_help_panel=TRAIN,
        epilog=examples(
            "fewstep train vae", "fewstep train student --set steps=2000 --set seed=1 --out runs/train-student-1"
        ),
    )(run)


def run(
    stage: Annotated[
        str,
        typer.Argument(
            help="vae, clip, judge, teacher, student, quality, dit, classifier, oms, encoder, rae, svg, text or video.",
            autocompletion=known.stages,
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; runs/train-STAGE unless given.")] = None,
) -> None:
    """Train one stage of the small models, on CPU or GPU. Killed, the same command goes on from its last checkpoint."""
    from rich.markup import escape

    from fewstep.jobs import zoo
    from fewstep.runs import processes

    made = zoo.run(stage, overrides or [], out or Path("runs") / f"train-{stage}")
    if processes.leads():
        console().print(f"[bold green]Done.[/bold green] The model lies in {escape(str(made))}")
        suggest(*following.after_stage(stage, made))
