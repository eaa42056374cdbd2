"""`fewstep serve`: the playground, and an HTTP endpoint under it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import known
from fewstep.cli.shell import LOOK, console, examples, finite
from fewstep.errors import FewstepError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "serve",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep serve emoji-student", "fewstep serve runs/demo", "fewstep serve MODEL --scheme w8a8 --port 9000"
        ),
    )(run)


def run(
    target: Annotated[
        str,
        typer.Argument(
            help="Run of q-sched or auto, shipped name, diffusers folder or hub id.", autocompletion=known.models
        ),
    ] = "emoji-student",
    scheme: Annotated[str, typer.Option(help="Low-bit column of a model; none leaves it out.")] = "w4a8",
    steps: Annotated[int, typer.Option(min=1, help="Steps, if the pipeline has no plan of its own.")] = 4,
    guidance: Annotated[float | None, typer.Option(min=0, callback=finite, help="guidance_scale of a model.")] = None,
    votes: Annotated[Path, typer.Option(help="Votes are added to this file; their pictures lie beside it.")] = Path(
        "votes.jsonl"
    ),
    host: Annotated[
        str, typer.Option(help="Address; other machines reach 0.0.0.0, without any password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; the next gets 429.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds until a request gets 504.")] = 120.0,
) -> None:
    """Draw one prompt by several settings at equal seeds, side by side in the browser, and vote."""
    try:
        import uvicorn

        from fewstep.serving.app import playground
    except ModuleNotFoundError as error:
        raise FewstepError("serve needs an extra", value=error.name, hint="pip install 'fewstep[ui]'") from error
    from fewstep.serving.models import served
    from fewstep.serving.votes import Votes

    app = playground(lambda: served(target, scheme, steps, guidance), Votes(votes), queue, timeout)
    console().print(f"http://{host}:{port}  (Ctrl-C ends it)", highlight=False)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)
