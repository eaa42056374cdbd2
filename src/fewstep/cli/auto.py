"""`fewstep auto`: everything that needs no training, chosen under budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields
from fewstep.cli.run import add_recipe_command
from fewstep.cli.shell import SMALLER

FIELDS = RecipeFields(
    "auto",
    arguments=("model",),
    options=("memory", "latency", "steps", "guidance", "search.items", "search.conditions"),
    complete={"model": known.models},
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    add_recipe_command(
        app, "auto", FIELDS, SMALLER, place,
        "fewstep auto emoji-student --memory 6MB",
        "fewstep auto my-pipeline --memory 2GB --latency 200ms --guidance 5 --out runs/small",
    )  # fmt: skip


def place(context: typer.Context, given: dict[str, Any]) -> Path:
    """Choose steps, solver, times, bits and Q-Sched for MODEL under budgets of bytes and milliseconds; no training.

    Compares settings with the model's own full-precision pictures, prints as it goes, and leaves report.html (the
    front of quality against cost, pictures along it, a sentence per decision), a plan for every point of the front and
    a pipeline folder at the chosen one. A killed run goes on when the same command is given again.
    """
    return Path("runs") / f"auto-{Path(given['model']).name}"
