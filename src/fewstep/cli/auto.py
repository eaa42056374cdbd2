"""`fewstep auto`: everything that needs no training, chosen under budgets."""

from __future__ import annotations

from pathlib import Path

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields, chosen
from fewstep.cli.run import DryRun, Fresh, Out, execute
from fewstep.cli.shell import SMALLER, Overrides, examples

FIELDS = RecipeFields(
    "auto",
    arguments=("model",),
    options=("memory", "latency", "steps", "guidance", "search.items", "search.conditions"),
    complete={"model": known.models},
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=FIELDS.command(),
        rich_help_panel=SMALLER,
        epilog=examples(
            "fewstep auto emoji-student --memory 6MB",
            "fewstep auto my-pipeline --memory 2GB --latency 200ms --guidance 5 --out runs/small",
        ),
    )(auto)


def auto(
    context: typer.Context,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Choose steps, solver, times, bits and Q-Sched for MODEL under budgets of bytes and milliseconds; no training.

    Compares settings with the model's own full-precision pictures, prints as it goes, and leaves report.html (the
    front of quality against cost, pictures along it, a sentence per decision), a plan for every point of the front and
    a pipeline folder at the chosen one. A killed run goes on when the same command is given again.
    """
    given = chosen(context)
    place = out or Path("runs") / f"auto-{Path(given['model']).name}"
    execute("auto", overrides or [], place, fresh, dry_run, given)
