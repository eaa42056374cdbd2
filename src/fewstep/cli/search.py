"""`fewstep search`: a better schedule for a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.run import DryRun, Fresh, Out, execute
from fewstep.cli.shell import Guidance, Overrides, examples, finite

METHOD_HELP = (
    "joint (all of them), s3 (times and solver strategies by evolution with a predictor), ld3 (times by gradient), "
    "amed (learned middle evaluations), gits (times from one teacher trajectory, seconds), autodiffusion (times and "
    "skipped layers by evolution), random (the control)."
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog=examples(
            "fewstep search emoji-teacher --steps 6 --guidance 2 --method gits",
            "fewstep search my-pipeline --steps 5 --budget 400 --out runs/five-steps",
            "fewstep search my-pipeline --steps 8 --method s3 --storage sqlite:///search.db --out runs/worker-2",
        )
    )(search)


def search(
    model: Annotated[str, typer.Argument(help="A diffusers folder, a hub id, or a shipped model.")],
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations that the schedule may use.")] = 6,
    method: Annotated[str, typer.Option(help=METHOD_HELP)] = "joint",
    budget: Annotated[int, typer.Option(min=1, help="Plans to evaluate; a gradient counts as three.")] = 200,
    guidance: Guidance = 1.0,
    items: Annotated[int, typer.Option(min=2, help="Pairs of condition and seed that every plan is tried on.")] = 32,
    q_sched: Annotated[
        float, typer.Option(min=0, callback=finite, help="Budget of a Q-Sched search on top; 0 for none.")
    ] = 0,
    storage: Annotated[
        str, typer.Option(help="Optuna storage URL that several workers share (same command, other --out).")
    ] = "",
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Search a schedule for MODEL: same network, same number of evaluations, results nearer to its many-step sampler.

    Needs no training, data or labels: the model's own fine trajectory is the target. Measures the result on held-out
    conditions and seeds beside every deterministic scheduler of diffusers, and leaves report.html, plan.json and a
    pipeline folder that follows the plan. A killed search goes on when the same command is given again.
    """
    chosen = {
        "model": model, "steps": steps, "guidance": guidance, "search.method": method, "search.budget": budget,
        "search.items": items, "search.q_sched": q_sched, "search.storage": storage,
    }  # fmt: skip
    place = out or Path("runs") / f"search-{Path(model).name}-{method}-{steps}"
    execute("schedule", overrides or [], place, fresh, dry_run, chosen)
