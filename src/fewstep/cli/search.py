"""`fewstep search`: a better schedule for a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields
from fewstep.cli.run import add_recipe_command
from fewstep.cli.shell import FASTER

FIELDS = RecipeFields(
    "schedule",
    arguments=("model",),
    options=(
        "steps", "search.method", "search.budget", "guidance", "search.items", "search.conditions", "search.solver",
        "teacher.steps", "search.q_sched", "search.seed", "search.storage",
    ),
    complete={"model": known.models, "search.method": known.search_methods, "search.solver": known.solvers},
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    add_recipe_command(
        app, "search", FIELDS, FASTER, place,
        "fewstep search emoji-teacher --steps 6 --guidance 2 --method gits",
        "fewstep search my-pipeline --steps 5 --budget 400 --out runs/five-steps",
        "fewstep search my-pipeline --steps 8 --method s3 --storage sqlite:///search.db --out runs/worker-2",
    )  # fmt: skip


def place(context: typer.Context, given: dict[str, Any]) -> Path:
    """Search a schedule for MODEL: same network, same number of evaluations, results nearer to its many-step sampler.

    Needs no training, data or labels: the model's own fine trajectory is the target. Measures the result on held-out
    conditions and seeds beside every deterministic scheduler of diffusers, and leaves report.html, plan.json and a
    pipeline folder that follows the plan. A killed search goes on when the same command is given again.
    """
    return Path("runs") / f"search-{Path(given['model']).name}-{given['search.method']}-{given['steps']}"
