"""`fewstep generate`: images from a pipeline and, if wanted, a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.shell import Guidance, Overwrite, console, examples


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog=examples(
            'fewstep generate --prompt "cat face" --seed 0 --seed 1 --out cats.png',
            'fewstep generate --model runs/demo/artifacts/pipeline --prompt "red heart"',
            'fewstep generate --model PATH_OR_ID --plan plan.json --prompt "a lighthouse" --guidance 1',
        )
    )(generate)


def generate(
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="What to draw; may be repeated.")],
    model: Annotated[str, typer.Option(help="Shipped name, diffusers folder or hub id.")] = "emoji-student",
    plan: Annotated[Path | None, typer.Option(help="Plan file; the pipeline's own scheduler unless given.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps, if the pipeline has no plan of its own.")] = 4,
    seed: Annotated[list[int] | None, typer.Option("--seed", "-s", help="One image per prompt and seed.")] = None,
    guidance: Guidance = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="Picture (.png, .jpg, .webp) or sheet to write; a free image.png unless given.")
    ] = None,
    zoom: Annotated[int, typer.Option(min=1, help="Repeat each pixel this often.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Draw prompts. A plan is refused if it belongs to another model, quantization or guidance."""
    import torch
    from rich.markup import escape

    from fewstep.pipelines import Generator, attach, load_pipeline, plan_of
    from fewstep.plan import Identity, Plan
    from fewstep.report import images
    from fewstep.runs.environment import best_device

    out = out or images.free_name(Path("image.png"))
    images.check_image(out, overwrite)
    pipe = load_pipeline(model).to(best_device())
    if plan is not None:
        attach(pipe, Plan.load(plan))
    stored = getattr(pipe.scheduler, "plan", None)
    chosen = plan_of(pipe, stored.steps if stored else steps, guidance_scale=guidance)
    chosen.check(Identity(guidance=guidance))
    seeds = seed or [0]
    pairs = [(text, number) for text in prompt for number in seeds]
    with torch.no_grad():
        made = Generator(pipe, guidance=guidance)(chosen, [text for text, _ in pairs], [number for _, number in pairs])
    images.save_image(images.grid(made, columns=len(seeds) if len(prompt) > 1 else None, zoom=zoom), out)
    count = f"{len(pairs)} image" + ("s" if len(pairs) > 1 else "")
    console().print(f"[bold green]Wrote {escape(str(out))}[/bold green]: {count}, {chosen.steps} steps each")
