"""`fewstep edit` and `fewstep age`: pictures changed by what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import known
from fewstep.cli.shell import (
    LOOK,
    CallArguments,
    Overwrite,
    Pictures,
    Results,
    call_arguments,
    console,
    end_with,
    examples,
    finite,
)
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.jobs.editing import Asked
    from fewstep.pipelines.protocol import Pipeline
    from fewstep.plan import Plan
    from fewstep.tasks.editing import Edit

Model = Annotated[str, typer.Option(help="Shipped name, diffusers folder or hub id.", autocompletion=known.models)]
Mask = Annotated[Path | None, typer.Option(help="White where pictures may change; the rest is kept.")]
PlanFile = Annotated[Path | None, typer.Option(help="Plan file; the pipeline's own scheduler unless given.")]
Steps = Annotated[int, typer.Option(min=1, help="Steps, if there is no plan.")]
Solver = Annotated[str, typer.Option(help="Of the plan.", autocompletion=known.solvers)]
Guidance = Annotated[
    float | None, typer.Option(min=0, callback=finite, help="guidance_scale; of the plan unless given, else 1.")
]
Size = Annotated[int, typer.Option(min=0, help="Side that is worked at; the model's own unless given.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Report = Annotated[
    bool, typer.Option("--report", help="Also OUT/report.html: every strength, and ten times the steps.")
]
Truth = Annotated[Path | None, typer.Option(help="Folder with the true results, for the report.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "edit",
        rich_help_panel=LOOK,
        epilog=examples(
            'fewstep edit woman.png "make the skin tone dark"',
            'fewstep edit woman.png "older woman" --strength 0.5 --report',
            'fewstep edit photos "a house in the snow" --model PATH_OR_ID --guidance 5 --steps 20 --mask sky.png',
        ),
    )(run)
    app.command(
        "age",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep age woman.png 60",
            "fewstep age faces 60 --now 30 --who woman --model stabilityai/sdxl-turbo --report",
        ),
    )(age)


def run(
    source: Pictures,
    instruction: Annotated[
        str, typer.Argument(help="What the result shows; of an emoji model also what to do: make it older.")
    ],
    model: Model = "emoji-student-guided",
    strength: Annotated[
        float, typer.Option(callback=finite, help="Share of the plan's rows that run; 0 gives the picture back.")
    ] = 0.75,
    mask: Mask = None,
    plan: PlanFile = None,
    steps: Steps = 4,
    solver: Solver = "",
    guidance: Guidance = None,
    size: Size = 0,
    seed: Seed = 0,
    arguments: CallArguments = None,
    report: Report = False,
    truth: Truth = None,
    out: Results = Path("edited"),
    overwrite: Overwrite = False,
) -> None:
    """Edit pictures by a text-to-image model without training: noised to a row of any plan, drawn anew from there.

    A folder goes on where a picture fails, lists what failed and ends with status 1.
    """
    if not instruction.strip():
        raise FewstepError("nothing is asked for", value=instruction, hint="Say what the picture is to show.")

    def asked(pipe: Pipeline, used: Plan) -> Asked:
        from fewstep.jobs.editing import instructed
        from fewstep.tasks.editing import Edit, first_row

        first_row(used, strength)
        return instructed(pipe, Edit(instruction, strength, size))

    followed = (model, plan, steps, solver, guidance, arguments or [])
    _run(source, followed, asked, instruction, mask, seed, report, truth, out, overwrite)


def age(
    source: Pictures,
    years: Annotated[int, typer.Argument(help="The age that is wanted, 0 to 100.")],
    now: Annotated[
        int | None, typer.Option(help="The age in the picture; read from it where the model is one of emoji.")
    ] = None,
    who: Annotated[str, typer.Option(help="Who it is, in the prompt of other models: woman, man, person.")] = "person",
    model: Model = "emoji-student-guided",
    mask: Mask = None,
    plan: PlanFile = None,
    steps: Steps = 4,
    solver: Solver = "",
    guidance: Guidance = None,
    size: Size = 0,
    seed: Seed = 0,
    arguments: CallArguments = None,
    report: Report = False,
    truth: Truth = None,
    out: Results = Path("aged"),
    overwrite: Overwrite = False,
) -> None:
    """Make people older or younger: the further the ages are apart, the noisier the start (Cradle2Cane's first pass).

    A folder goes on where a picture fails, lists what failed and ends with status 1.
    """
    from fewstep.tasks.editing import check_age

    check_age(years)
    if now is not None:
        check_age(now)

    def asked(pipe: Pipeline, used: Plan) -> Asked:
        from fewstep.tasks.editing import aged

        return lambda picture: aged(pipe, picture, years, now=now, who=who, size=size)

    followed = (model, plan, steps, solver, guidance, arguments or [])
    _run(source, followed, asked, f"{years} years old", mask, seed, report, truth, out, overwrite)


def _run(
    source: Path,
    followed: tuple[str, Path | None, int, str, float | None, list[str]],
    asked: Callable[[Pipeline, Plan], Asked],
    title: str,
    mask: Path | None,
    seed: int,
    report: bool,
    truth: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    import fewstep as fs
    from fewstep.api.generation import followed as plan_followed
    from fewstep.files import check_free
    from fewstep.jobs import editing
    from fewstep.jobs.photo_files import pictures_in
    from fewstep.pipelines import PipelineSampler
    from fewstep.runs.environment import best_device

    files, page = pictures_in(source), out / "report.html"
    model, plan, steps, solver, guidance, arguments = followed
    if report:
        check_free(page, overwrite=True)
    call: dict[str, Any] = call_arguments(arguments)
    pipe = fs.load(model).to(best_device())
    chosen = fs.Plan.load(plan) if plan is not None else fs.plan_of(pipe, steps, solver=solver) if solver else None
    used, scale = plan_followed(pipe, chosen, steps, guidance, call)
    generate, how = PipelineSampler(pipe, scale, call), asked(pipe, used)

    def said(picture: Tensor) -> Edit:
        edit = how(picture)
        console().print(f"asking for {edit.prompt!r} at strength {edit.strength:g}", highlight=False)
        return edit

    failed = editing.edit_files(generate, used, files, out, said, mask=mask, seed=seed, overwrite=overwrite)
    console().print(f"[bold green]Wrote {len(files) - len(failed)} of {len(files)} pictures[/bold green] to {out}")
    if report:
        many = 10 * used.steps
        plans = {f"{used.steps} steps": used, f"{many} steps": fs.plan_of(pipe, many, solver=solver or "ddim")}
        shown = [file for file in files if file.name not in failed]
        editing.report(generate, plans, shown, page, how, title, truth=truth, mask=mask, seed=seed)
    end_with(failed)
