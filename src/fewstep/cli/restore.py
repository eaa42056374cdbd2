"""`fewstep restore` and `fewstep upscale`: pictures from pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import known
from fewstep.cli.shell import LOOK, Overwrite, Pictures, Results, console, end_with, examples, finite
from fewstep.errors import FewstepError, nearest

Model = Annotated[str, typer.Option(help="Folder or hub id of an unconditional pipeline of pixels, such as DDPM.")]
Rule = Annotated[str, typer.Option(help="Guidance: pigdm, dps, ddnm or ddrm.")]
Steps = Annotated[int, typer.Option(min=1, help="Network evaluations.")]
Noise = Annotated[float, typer.Option(min=0, callback=finite, help="Standard deviation, of a range of 1.")]
Seed = Annotated[int, typer.Option(help="Of the noise that the picture is drawn from.")]
Tile = Annotated[int, typer.Option(min=0, help="Side restored at once; that of the model's pictures unless given.")]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that tiles share; a quarter of a tile unless given.")]
Report = Annotated[bool, typer.Option("--report", help="Also OUT/report.html, with many steps and the spread.")]
Truth = Annotated[Path | None, typer.Option(help="Folder with the true pictures, for the report.")]
Solver = Annotated[str, typer.Option(help="Of the plan.", autocompletion=known.solvers)]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "restore",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep restore photo.png --model google/ddpm-celebahq-256 --operator blur:1.5 --noise 0.02",
            "fewstep restore photos --model FOLDER --operator inpainting --mask known.png --rule ddnm --out whole",
            "fewstep restore photos --model FOLDER --operator denoise --noise 0.1 --report",
        ),
    )(run)
    app.command(
        "upscale",
        rich_help_panel=LOOK,
        epilog=examples(
            "fewstep upscale small.png --model google/ddpm-celebahq-256 --factor 4 --steps 8",
            "fewstep upscale photos --model FOLDER --factor 2 --report --out large",
        ),
    )(upscale)


def run(
    source: Pictures,
    model: Model,
    operator: Annotated[
        str, typer.Option(help="What happened: denoise, blur:WIDTH, grey, inpainting, box:N, bicubic:N.")
    ],
    noise: Noise = 0.0,
    rule: Rule = "pigdm",
    steps: Steps = 4,
    solver: Solver = "ddim",
    plan: Annotated[Path | None, typer.Option(help="A plan file, instead of steps and solver.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Of inpainting: white where the picture is known.")] = None,
    seed: Seed = 0,
    tile: Tile = 0,
    overlap: Overlap = None,
    report: Report = False,
    truth: Truth = None,
    out: Results = Path("restored"),
    overwrite: Overwrite = False,
) -> None:
    """Restore pictures with a model of clean ones: no training, any plan.

    A folder goes on where a picture fails, lists what failed and ends with status 1.
    """
    how = {"operator": operator, "noise": noise, "tile": tile, "overlap": overlap}
    _run(source, model, how, rule, steps, solver, plan, mask, seed, report, truth, out, overwrite)


def upscale(
    source: Pictures,
    model: Model,
    factor: Annotated[int, typer.Option(min=2, help="How much larger.")] = 4,
    noise: Noise = 0.0,
    rule: Rule = "pigdm",
    steps: Steps = 4,
    solver: Solver = "ddim",
    seed: Seed = 0,
    tile: Tile = 0,
    overlap: Overlap = None,
    report: Report = False,
    truth: Truth = None,
    out: Results = Path("upscaled"),
    overwrite: Overwrite = False,
) -> None:
    """Enlarge pictures: `fewstep restore --operator bicubic:FACTOR`."""
    how = {"operator": f"bicubic:{factor}", "noise": noise, "tile": tile, "overlap": overlap}
    _run(source, model, how, rule, steps, solver, None, None, seed, report, truth, out, overwrite)


def _run(
    source: Path,
    model: str,
    how: dict[str, Any],
    rule: str,
    steps: int,
    solver: str,
    plan: Path | None,
    mask: Path | None,
    seed: int,
    report: bool,
    truth: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    import fewstep as fs
    from fewstep.files import check_free
    from fewstep.jobs import restoring
    from fewstep.jobs.photo_files import pictures_in
    from fewstep.pipelines import identity_of
    from fewstep.runs.environment import best_device
    from fewstep.tasks.restoration.guidance import GUIDANCES
    from fewstep.tasks.restoration.restore import Restoration, parse_operator

    if rule not in GUIDANCES:
        raise FewstepError("unknown guidance", value=rule, hint=nearest(rule, GUIDANCES))
    parse_operator(how["operator"])
    files = pictures_in(source)
    page = out / "report.html"
    if report:
        check_free(page, overwrite=True)
    pipe = fs.load(model).to(best_device())
    restoring.pixel_network(pipe)
    used = fs.Plan.load(plan) if plan is not None else fs.plan_of(pipe, steps, solver=solver)
    used.check(identity_of(pipe))
    chosen = Restoration(**how, rule=GUIDANCES[rule]())
    failed = restoring.restore_files(pipe, used, files, out, chosen, mask=mask, seed=seed, overwrite=overwrite)
    console().print(f"[bold green]Wrote {len(files) - len(failed)} of {len(files)} pictures[/bold green] to {out}")
    if report:
        plans = {f"{used.steps} steps": used, f"{10 * used.steps} steps": fs.plan_of(pipe, 10 * steps, solver=solver)}
        shown = [file for file in files if file.name not in failed]
        restoring.report(pipe, plans, shown, page, chosen, truth=truth, mask=mask, seed=seed)
    end_with(failed)
