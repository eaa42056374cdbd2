"""`fewstep diagnose`, once `inspect`: what a pipeline's network is, and where its sampler makes its error."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.shell import LOOK, Guidance, call_arguments, console, examples, suggest


def add_to(app: typer.Typer) -> None:
    """Register the command, and its former name."""
    app.command(
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep diagnose emoji-teacher --steps 6",
            'fewstep diagnose PATH_OR_ID --prompt "a lighthouse" --steps 10 --out runs/lighthouse',
            "fewstep diagnose emoji-student --plan runs/demo/artifacts/plan.json --samples 16",
            "fewstep diagnose PATH_OR_ID --set height=512 --set width=512 --guidance 4.5",
        ),
    )(diagnose)
    app.command("inspect", hidden=True, epilog="The former name of `fewstep diagnose`.")(diagnose)


def diagnose(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Shipped name, diffusers folder or hub id.", autocompletion=known.models),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Network calls of the plans, if the pipeline has none stored.")] = 8,
    plan: Annotated[Path | None, typer.Option(help="Plan file to inspect instead of the pipeline's own.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Samples that intervals rest on.")] = 8,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Prompts, used in turn.")] = None,
    guidance: Guidance = 1.0,
    probes: Annotated[int, typer.Option(min=1, help="Random directions per Jacobian estimate.")] = 4,
    fine: Annotated[int, typer.Option(min=1, help="Reference steps per row, of four network calls each.")] = 3,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the pipeline's call, height=256; repeatable."),
    ] = None,
    variant: Annotated[str, typer.Option(help="Of the weight files, such as fp16.")] = "",
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/diagnose unless given.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what an earlier run left in the directory.")] = False,
) -> None:
    """Measure a network (conservativity, divergence, dimension) and the error of its plan and of others, row by row.

    The same command on the same directory goes on where it was stopped.
    """
    from rich.markup import escape

    from fewstep.files import read_json
    from fewstep.jobs.inspect import InspectSettings
    from fewstep.jobs.inspect import inspect as measure
    from fewstep.jobs.inspect.page import plans_table
    from fewstep.report import to_rich
    from fewstep.runs import Run

    if context.info_name == "inspect":
        console(err=True).print("`fewstep inspect` is called `fewstep diagnose` now.", style="dim")
    place = out or Path("runs") / str(context.info_name)
    text = None if plan is None else str(plan)
    settings = InspectSettings(model, steps, text, samples, probes, fine, guidance, tuple(prompt or ()), seed, variant)
    call = call_arguments(arguments or [])
    with Run(place, {"inspect": settings.plain(), "call": call}, fresh=fresh) as run:
        made = measure(settings, run, **call)
    console().print(to_rich(plans_table(read_json(place / "results.json"))))
    console().print(f"[bold green]Done.[/bold green] Open {escape(str(made))}")
    suggest(f"fewstep search {shlex.quote(model)} --steps {steps} --guidance {guidance:g}")
