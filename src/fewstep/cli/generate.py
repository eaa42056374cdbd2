"""`fewstep generate`: images from a pipeline and, if wanted, a plan."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import known
from fewstep.cli.shell import LOOK, CallArguments, Overwrite, call_arguments, console, examples, finite, suggest
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.pipelines.protocol import Pipeline


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "generate",
        rich_help_panel=LOOK,
        epilog=examples(
            'fewstep generate --prompt "cat face" --seed 0 --seed 1 --out cats.png',
            'fewstep generate --model runs/demo/artifacts/pipeline --prompt "red heart"',
            'fewstep generate --model mnist-dit --label 3 --label "digit 7" --steps 10 --zoom 4',
            'fewstep generate --model PATH_OR_ID --plan plan.json --prompt "a lighthouse" --guidance 1',
        ),
    )(run)


def run(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to draw; may be repeated.")] = None,
    model: Annotated[
        str, typer.Option(help="Shipped name, diffusers folder or hub id.", autocompletion=known.models)
    ] = "emoji-student",
    plan: Annotated[Path | None, typer.Option(help="Plan file; the pipeline's own scheduler unless given.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps, if the pipeline has no plan of its own.")] = 4,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="Class to draw, by number or name; may be repeated.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw; needs guidance above 1.")] = "",
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; the pipeline's own unless given.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; the pipeline's own unless given.")] = None,
    arguments: CallArguments = None,
    variant: Annotated[str, typer.Option(help="Of the weight files, such as fp16.")] = "",
    seed: Annotated[list[int] | None, typer.Option("--seed", "-s", help="One image per prompt and seed.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=finite,
            help="guidance_scale of the pipeline; that of its plan unless given, and 1, without, where it says none.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Picture (.png, .jpg, .webp) or video (.gif, .webp, .png); a free image.png unless given."),
    ] = None,
    zoom: Annotated[int, typer.Option(min=1, max=64, help="Repeat each pixel this often.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures or videos of prompts or class labels.

    A plan is refused if it belongs to another model, quantization or guidance.
    """
    import torch
    from rich.markup import escape

    import fewstep as fs
    from fewstep.report import images
    from fewstep.runs.environment import best_device

    out = out or images.free_name(Path("image.png"))
    given = {"negative_prompt": negative_prompt or None, "height": height, "width": width}
    call = {**{k: v for k, v in given.items() if v is not None}, **call_arguments(arguments or [])}
    if negative_prompt and (guidance or 1) <= 1 and "true_cfg_scale" not in call:
        raise FewstepError("without guidance a negative prompt does nothing", value=guidance, hint="Add --guidance 5.")
    images.check_image(out, overwrite)
    options: dict[str, Any] = {"variant": variant} if variant else {}
    pipe = fs.load(model, **options).to(best_device())
    moving = "num_frames" in inspect.signature(type(pipe).__call__).parameters
    images.check_image(out, overwrite, moving)
    conditions = _conditions(pipe, prompt or [], label or [])
    if plan is not None:
        fs.attach(pipe, fs.Plan.load(plan))
    seeds = seed or [0]
    made = fs.generate(pipe, conditions, seeds=seeds, steps=steps, guidance=guidance, **call)
    stored = getattr(pipe.scheduler, "plan", None)
    steps = stored.steps if stored else steps
    columns = len(seeds) if len(conditions or []) > 1 else None
    if moving:
        frames = torch.stack([images.image_grid(frame, columns, zoom=zoom) for frame in made.transpose(0, 1)])
        images.save_video(frames, out)
    else:
        images.save_image(images.image_grid(made, columns, zoom=zoom), out)
    count = f"{len(made)} {'video' if moving else 'image'}" + ("s" if len(made) > 1 else "")
    console().print(f"[bold green]Wrote {escape(str(out))}[/bold green]: {count}, {steps} steps each")
    suggest(f"fewstep diagnose {shlex.quote(model)} --steps {steps}")


def _conditions(pipe: Pipeline, prompts: list[str], labels: list[str]) -> list[Any] | None:
    """What the pipeline draws from, of what was given; None for an unconditional one.

    Raises:
        FewstepError: it draws from something else.
    """
    from fewstep.pipelines.calls import condition_kind
    from fewstep.pipelines.conditions import class_label

    kind = condition_kind(pipe)
    wanted = {"prompt": "--prompt", "class_labels": "--label"}.get(kind)
    for option, values in (("--prompt", prompts), ("--label", labels)):
        if bool(values) != (option == wanted):
            hint = f"Give {wanted}." if wanted else "Leave it out: the pipeline is unconditional."
            what = f"{type(pipe).__name__} takes no {option}" if values else f"{type(pipe).__name__} needs {option}"
            raise FewstepError(what, value=values or None, hint=hint)
    return prompts or [class_label(pipe, label) for label in labels] or None
