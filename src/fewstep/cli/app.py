"""The verbs, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from fewstep.cli import bench, distill, doctor, export, generate, inspect, plan, quantize, run, search, train
from fewstep.cli.shell import Commands

app = typer.Typer(
    cls=Commands,
    name="fewstep",
    help="Give fewstep a diffusion or flow model; get back one that needs 1-8 network evaluations and 4-8 bits, and a "
    "report that shows what that cost.",
    no_args_is_help=True,
    add_completion=False,
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
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Few network evaluations, few bits, and proof of what that cost."""


run.add_to(app)
search.add_to(app)
quantize.add_to(app)
export.add_to(app)
distill.add_to(app)
app.add_typer(plan.app, name="plan")
app.add_typer(bench.app, name="bench")
generate.add_to(app)
inspect.add_to(app)
train.add_to(app)
doctor.add_to(app)
