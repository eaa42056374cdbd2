"""`fewstep distill`: a student that draws in few steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields, chosen
from fewstep.cli.run import DryRun, Fresh, Out, execute
from fewstep.cli.shell import TRAIN, Overrides, console, examples, suggest

FIELDS = RecipeFields(
    "distill",
    options=(
        "model", "steps", "guidance", "data.source", "data.conditions", "train.steps", "train.batch",
        "train.learning_rate", "train.seed",
    ),
    named={"data.source": "data"},
    complete={"model": known.models},
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "distill",
        cls=FIELDS.command(),
        rich_help_panel=TRAIN,
        epilog=examples(
            "fewstep distill",
            "fewstep distill tdm --show",
            "fewstep distill dmd2 --model mnist-dit --steps 4 --guidance 1.5",
            "fewstep distill lcm --model my-pipeline --steps 4 --data my-pictures --train-steps 2000 --out runs/mine",
        ),
    )(run)


def run(
    context: typer.Context,
    method: Annotated[
        str,
        typer.Argument(help="Name of a method; all are listed where none is given.", autocompletion=known.methods),
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="Write the method out part by part; train nothing.")] = False,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train a student of MODEL by METHOD: few steps, guidance inside, its plan saved with it.

    Without METHOD, lists the methods. Leaves report.html (pictures beside the teacher at equal and at many steps,
    distances with intervals, loss curves, advice where the training looks unsound), results.json and
    artifacts/pipeline, a diffusers folder. A killed training goes on from its last checkpoint. Several processes:
    torchrun --nproc_per_node N -m fewstep distill ..., each with a batch of its own.
    """
    if not method:
        _list()
        suggest("fewstep distill METHOD --show", "fewstep distill METHOD --model MODEL --steps 4")
        return
    given = {**chosen(context), "method": method}
    if show:
        _show(given, overrides or [])
        suggest(f"fewstep distill {method} --model {given['model']} --steps {given['steps']}")
        return
    place = out or Path("runs") / f"distill-{Path(given['model']).name}-{method}-{given['steps']}"
    execute("distill", overrides or [], place, fresh, dry_run, given)


def _list() -> None:
    from rich.table import Table

    from fewstep.distillation.method import options_of, presets

    table = Table("method", "what it does", "options", box=None, pad_edge=False)
    for name, line in presets().items():
        table.add_row(name, line, ", ".join(options_of(name)))
    console().print(table)


def _show(chosen: Mapping[str, Any], overrides: list[str]) -> None:
    from fewstep.distillation.method import method
    from fewstep.distillation.outline import outline
    from fewstep.jobs.distill.recipe import DistillRecipe
    from fewstep.process import RectifiedFlow
    from fewstep.recipes.loader import load

    recipe = load("distill", overrides, chosen)
    assert isinstance(recipe, DistillRecipe)
    print(outline(method(recipe.method, RectifiedFlow(), **recipe.method_options())))
