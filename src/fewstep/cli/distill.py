"""`fewstep distill`: a student that draws in few steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.run import DryRun, Fresh, Out, execute
from fewstep.cli.shell import Overrides, console, examples, finite


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog=examples(
            "fewstep distill",
            "fewstep distill tdm --show",
            "fewstep distill dmd2 --model mnist-dit --steps 4 --guidance 1.5",
            "fewstep distill lcm --model my-pipeline --steps 4 --data my-pictures --train-steps 2000 --out runs/mine",
        )
    )(distill)


def distill(
    method: Annotated[str, typer.Argument(help="Name of a method; all are listed where none is given.")] = "",
    model: Annotated[str, typer.Option(help="The teacher: a diffusers folder, a hub id, or a shipped model.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations of the student.")] = 4,
    guidance: Annotated[
        float, typer.Option(min=1, callback=finite, help="guidance_scale of the teacher, trained into the student.")
    ] = 1,
    train_steps: Annotated[int, typer.Option(min=1, help="Updates of the student.")] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Samples per update.")] = 32,
    data: Annotated[
        str, typer.Option(help="emoji, mnist, a folder or an npz; `teacher`: the teacher's own samples.")
    ] = "teacher",
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
        return
    chosen = {
        "model": model or "mnist-dit", "method": method, "steps": steps, "guidance": guidance,
        "train.steps": train_steps, "train.batch": batch, "data.source": data,
    }  # fmt: skip
    if show:
        _show(chosen, overrides or [])
        return
    place = out or Path("runs") / f"distill-{Path(model or 'mnist-dit').name}-{method}-{steps}"
    execute("distill", overrides or [], place, fresh, dry_run, chosen)


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
