"""`fewstep bench`: comparisons whose numbers stand in the documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.shell import Overrides, console, examples, finite, names, suggest

app = typer.Typer(help="Comparisons under equal conditions, as one JSON file.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Comparisons under equal conditions."""


@app.command(
    "distill",
    epilog=examples(
        "fewstep bench distill --output results/distillation.json",
        "fewstep bench distill --methods dmd2,lcm --steps 1,4 --seeds 0 --budget 20000 --out runs/quick",
    ),
)
def compare_methods(
    model: Annotated[
        str, typer.Option(help="The teacher: shipped name, diffusers folder or hub id.", autocompletion=known.models)
    ] = "mnist-dit",
    methods: Annotated[
        str, typer.Option(help="Names with commas; the main ones unless given.", autocompletion=known.methods)
    ] = "",
    steps: Annotated[str, typer.Option(help="Network evaluations of the students, with commas.")] = "1,2,4",
    seeds: Annotated[str, typer.Option(help="Seeds of the training, with commas.")] = "0,1,2",
    budget: Annotated[int, typer.Option(min=1, help="Samples through networks in each training.")] = 200_000,
    guidance: Annotated[float, typer.Option(min=1, callback=finite, help="guidance_scale of the teacher.")] = 1,
    learning_rate: Annotated[float, typer.Option(callback=finite, help="The same for every method.")] = 1e-4,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are kept.")] = Path("runs/bench-distill"),
    output: Annotated[Path, typer.Option(help="JSON file of the numbers.")] = Path("runs/bench-distill/results.json"),
) -> None:
    """Distil one teacher by many methods with equal budgets of network passes, and compare their students.

    A backward pass counts as two forward ones. Killed, the same command goes on with the next training.
    """
    from fewstep.files import check_free, write_json
    from fewstep.jobs.distill.leaderboard import Leaderboard, compete

    contest = Leaderboard(
        model, tuple(names(methods)), _numbers(steps), _numbers(seeds), budget, guidance,
        learning_rate, overrides=tuple(overrides or ()),
    )  # fmt: skip
    check_free(output, overwrite=True)
    write_json(output, compete(contest, out, lambda line: console().print(line)))
    console().print(f"[bold green]Wrote {output}[/bold green]")
    suggest(f"fewstep distill METHOD --model {model} --steps N")


def _numbers(text: str) -> tuple[int, ...]:
    from fewstep.errors import FewstepError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise FewstepError("numbers with commas are needed", value=text, hint="Write 1,2,4.") from error
