"""`fewstep write`: text by a masked language model in few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.shell import LOOK, Overwrite, console, examples, finite


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "write",
        rich_help_panel=LOOK,
        epilog=examples(
            'fewstep write "KING HENRY:" --model runs/train-text --steps 8 --seed 0 --seed 1',
            'fewstep write "To be, or" --ending "the question." --model runs/train-text --report written.html',
            'fewstep write "Paris is the capital of" --model answerdotai/ModernBERT-base --tokens 2',
        ),
    )(run)


def run(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    *,
    model: Annotated[str, typer.Option(help="Folder or hub id of a masked language model.")],
    ending: Annotated[str, typer.Option(help="What the text ends with.")] = "",
    tokens: Annotated[int | None, typer.Option(min=1, help="To be written; all that there is room for.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 16,
    order: Annotated[
        str, typer.Option(help="Of reveals: independent, random, confidence, entropy or entropy-bound.")
    ] = "independent",
    temperature: Annotated[float, typer.Option(min=0.01, callback=finite, help="Of the tokens' law.")] = 1.0,
    remask: Annotated[float, typer.Option(min=0, max=1, help="Share of masking tokens again.")] = 0.0,
    plan: Annotated[Path | None, typer.Option(help="A plan of reveals, instead of these four.")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", "-s", help="One text per seed.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="A page with four times the steps beside it, and when each token was revealed.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write text in few steps; what lies between prompt and ending is revealed many tokens at a time.

    No model of text ships: `fewstep train text` makes one of tinyshakespeare, or of a text of your own.
    """
    from fewstep.discrete import RevealPlan
    from fewstep.files import check_free
    from fewstep.jobs import writing
    from fewstep.tasks.text import open_text_model, write

    if report is not None:
        check_free(report, overwrite)
    opened, seeds = open_text_model(model), seed or [0]
    how: dict[str, Any] = {"order": order, "temperature": temperature, "remask": remask}
    given = {"ending": ending, "tokens": tokens, "seeds": seeds, **how}
    used = RevealPlan.load(plan) if plan is not None else None
    found = write(opened, prompt, steps=steps, plan=used, **given)
    for text in found.texts:
        console().print(text, markup=False, highlight=False)
        console().print("")
    for warning in found.warnings():
        console(err=True).print(f"[yellow]{warning}[/yellow]", highlight=False)
    if report is not None:
        more = write(opened, prompt, steps=4 * found.plan.steps, **given)
        writing.report(found, more, seeds, report, model)
        console(err=True).print(f"[bold green]Wrote[/bold green] {report}", highlight=False)
