"""The verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli import (
    align,
    articulate,
    auto,
    bench,
    design,
    diagnose,
    distill,
    doctor,
    edit,
    export,
    fold,
    generate,
    plan,
    quantize,
    restore,
    run,
    runs,
    save,
    score,
    search,
    serve,
    stream,
    train,
    tune,
    write,
)
from fewstep.cli.shell import LOOK, RUN, Commands

app = typer.Typer(
    cls=Commands,
    name="fewstep",
    help="Give fewstep a diffusion or flow model; get back one that needs 1-8 network evaluations and 4-8 bits, and a "
    "report that shows what that cost.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fewstep import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _fewstep(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not say what to do next.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Few network evaluations, few bits, and proof of what that cost."""


auto.add_to(app)
quantize.add_to(app)
tune.add_to(app)
export.add_to(app)
search.add_to(app)
distill.add_to(app)
align.add_to(app)
train.add_to(app)
generate.add_to(app)
edit.add_to(app)
restore.add_to(app)
articulate.add_to(app)
design.add_to(app)
write.add_to(app)
fold.add_to(app)
save.add_to(app)
diagnose.add_to(app)
app.add_typer(plan.app, name="plan", rich_help_panel=LOOK)
run.add_to(app)
score.add_to(app)
serve.add_to(app)
runs.add_to(app)
stream.add_to(app)
app.add_typer(bench.app, name="bench", rich_help_panel=RUN)
doctor.add_to(app)
