"""`fewstep save`: a pipeline, with a plan, as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import following, known
from fewstep.cli.shell import LOOK, Overwrite, console, examples, suggest


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "save",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep save my-pipeline my-few-steps --plan runs/search-my-pipeline-joint-6/artifacts/plan.json",
            "fewstep save runs/tune-emoji-student-w4a8 emoji-small",
        ),
    )(run)


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Shipped name, diffusers folder, run directory or hub id.",
            autocompletion=known.models,
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made whole or not at all.")],
    plan: Annotated[Path | None, typer.Option(help="Plan that it follows; what it follows now unless given.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a pipeline as a diffusers folder, which plain diffusers opens after `import fewstep`."""
    import fewstep as fs
    from fewstep.files import check_free

    check_free(folder, overwrite)
    place = fs.save(fs.load(model), folder, plan=None if plan is None else fs.Plan.load(plan), overwrite=overwrite)
    console().print(f"Wrote {folder}", markup=False, style="bold green")
    suggest(following.generating(place))
