"""`fewstep design`: sequences of high score from few measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.shell import LOOK, Overwrite, console, examples, finite


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "design",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep design gb1 --rounds 4 --count 50",
            "fewstep design measured.csv --way guidance --count 96 --out next-plate",
            "fewstep design measured.csv --scorer assay.py:score --rounds 3 --way smc",
        ),
    )(run)


def run(
    data: Annotated[str, typer.Argument(help="CSV with the columns sequence and score, or gb1, which ships.")],
    way: Annotated[
        str,
        typer.Option(help="conditioning, guidance, smc, grpo, evolution or random.", autocompletion=known.design_ways),
    ] = "conditioning",
    count: Annotated[int, typer.Option(min=1, help="Sequences of a round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of proposing and measuring.")] = 4,
    scale: Annotated[
        float, typer.Option(min=0, callback=finite, help="Of the tilt, per deviation of the scores.")
    ] = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations of a sequence.")] = 4,
    scorer: Annotated[
        str,
        typer.Option(metavar="FILE.py:NAME", help="Measures a list of sequences; without it one round is proposed."),
    ] = "",
    start: Annotated[int, typer.Option(min=20, help="Of gb1: how many variants are measured before.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of proposals.csv and report.html, of nothing else.")] = Path(
        "designed"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Propose sequences that should score higher than those measured, and say when they have left the data.

    With gb1 or a scorer they are measured and the model learns from them, round by round.
    """
    from fewstep.files import check_free
    from fewstep.jobs.designing import run_design
    from fewstep.tasks.design.ways import DesignSettings, way_named

    way_named(way)
    check_free(out, overwrite)
    settings = DesignSettings(scale=scale, steps=steps, seed=seed)
    found = run_design(
        data, way, out, count=count, rounds=rounds, settings=settings, scorer=scorer, start=start, overwrite=overwrite
    )
    for warning in found["warnings"]:
        console(err=True).print(f"[yellow]{warning}[/yellow]", highlight=False)
    if found["failed"]:
        console().print(f"{found['failed']} measurements failed; they are in proposals.csv, without a score")
    best = " -> ".join(f"{value:.4g}" for value in found["best"])
    console().print(f"[bold green]Wrote[/bold green] {out}/proposals.csv and report.html; best score {best}")
