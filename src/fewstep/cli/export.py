"""`fewstep export-gguf`: Linear weights of a model in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.shell import SMALLER, Overwrite, console, examples


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "export-gguf",
        rich_help_panel=SMALLER,
        epilog=examples(
            "fewstep export-gguf PATH_OR_ID flux-q8.gguf",
            "fewstep export-gguf runs/four-bits/artifacts/pipeline flux-q4.gguf --type Q4_0",
        ),
    )(run)


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Shipped name, diffusers folder or hub id.", autocompletion=known.models),
    ],
    file: Annotated[Path, typer.Argument(help="The file to write.")],
    type: Annotated[str, typer.Option(help="Q8_0 or Q4_0, of Linear weights in whole blocks of 32.")] = "Q8_0",
    overwrite: Overwrite = False,
) -> None:
    r"""Write a pipeline's network as a GGUF file, under the names of diffusers (needs `pip install 'fewstep\[gguf]'`).

    Weights only, Linear only; weights that fewstep stored in groups of 32 with 4 or 8 bit go over code for code. Plain
    diffusers reads the file back for classes with a single-file loader (FLUX, SD3, Wan, LTX, ...); the output says so.
    """
    from fewstep.files import check_free
    from fewstep.pipelines import backbone_of, load_pipeline
    from fewstep.pipelines.low_bit.gguf_file import export_gguf

    check_free(file, overwrite)
    made = export_gguf(backbone_of(load_pipeline(model)), file, type, overwrite)
    console().print(made.summary(), markup=False)
