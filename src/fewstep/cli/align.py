"""`fewstep align`: a few-step student tuned by rewards or votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields
from fewstep.cli.run import add_recipe_command
from fewstep.cli.shell import TRAIN

FIELDS = RecipeFields(
    "align",
    arguments=("model",),
    options=(
        "method", "reward", "weights", "train_prompts", "pairs", "teacher", "steps", "train.steps", "train.batch",
        "train.learning_rate", "train.lora", "train.every", "train.seed", "evaluation.judge",
    ),
    named={"train_prompts": "prompts"},
    complete={"model": known.models, "method": known.alignments},
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    add_recipe_command(
        app, "align", FIELDS, TRAIN, place,
        "fewstep align emoji-student --method pso --reward colourfulness",
        "fewstep align my-student --method pso_offline --pairs votes.jsonl",
        "fewstep align emoji-student --method joint --reward colourfulness --teacher emoji-teacher",
        "fewstep align emoji-student --method grpo --reward clip:emoji-clip --set options.eta=0.5",
    )  # fmt: skip


def place(context: typer.Context, given: dict[str, Any]) -> Path:
    """Tune the few-step student MODEL towards rewards, or towards votes on pairs of pictures.

    Leaves report.html (reward, judge, recall, diversity and distance along the training, pictures of equal seeds before
    and after), results.json and artifacts/pipeline. Where the reward rises while what was not trained on falls, the
    training stops and the best student before is kept. A killed training goes on from its last checkpoint.
    """
    return Path("runs") / f"align-{Path(given['model']).name}-{given['method']}"
