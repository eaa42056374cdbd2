"""`fewstep diagnose`, once `inspect`: what a pipeline's network is, and where its sampler makes its error."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields, chosen
from fewstep.cli.run import Fresh, Out
from fewstep.cli.shell import LOOK, CallArguments, call_arguments, console, examples, suggest

FIELDS = RecipeFields(
    "fewstep.jobs.inspect:InspectSettings",
    arguments=("model",),
    options=("steps", "plan", "samples", "guidance", "probes", "fine", "seed", "variant"),
    complete={"model": known.models},
)


def add_to(app: typer.Typer) -> None:
    """Register the command, and its former name."""
    app.command(
        "diagnose",
        cls=FIELDS.command(),
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep diagnose emoji-teacher --steps 6",
            'fewstep diagnose PATH_OR_ID --prompt "a lighthouse" --steps 10 --out runs/lighthouse',
            "fewstep diagnose emoji-student --plan runs/demo/artifacts/plan.json --samples 16",
            "fewstep diagnose PATH_OR_ID --set height=512 --set width=512 --guidance 4.5",
        ),
    )(run)
    former = "The former name of `fewstep diagnose`."
    app.command("inspect", cls=FIELDS.command(), hidden=True, epilog=former)(run)


def run(
    context: typer.Context,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Prompts, used in turn.")] = None,
    arguments: CallArguments = None,
    out: Out = None,
    fresh: Fresh = False,
) -> None:
    """Measure a network (conservativity, divergence, dimension) and the error of its plan and of others, row by row.

    The same command on the same directory goes on where it was stopped.
    """
    from rich.markup import escape

    from fewstep.files import read_json
    from fewstep.jobs.inspect import InspectSettings, inspect
    from fewstep.jobs.inspect.page import plans_table
    from fewstep.report import to_rich
    from fewstep.runs import Run

    if context.info_name == "inspect":
        console(err=True).print("`fewstep inspect` is called `fewstep diagnose` now.", style="dim")
    place = out or Path("runs") / str(context.info_name)
    settings = InspectSettings.of(**chosen(context), prompts=tuple(prompt or ()))
    call = call_arguments(arguments or [])
    with Run(place, {"inspect": settings.plain(), "call": call}, fresh=fresh) as started:
        made = inspect(settings, started, **call)
    console().print(to_rich(plans_table(read_json(place / "results.json"))))
    console().print(f"[bold green]Done.[/bold green] Open {escape(str(made))}")
    suggest(f"fewstep search {shlex.quote(settings.model)} --steps {settings.steps} --guidance {settings.guidance:g}")
