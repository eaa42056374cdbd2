"""`fewstep plan`: look at plans, and move them to and from diffusers schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.shell import Commands, Overwrite, console, examples, suggest
from fewstep.errors import FewstepError, PlanError

if TYPE_CHECKING:
    from fewstep.plan import Plan

app = typer.Typer(cls=Commands, help="Show, export and import plans: samplers as data.", no_args_is_help=True)


@app.command(
    epilog=examples("fewstep plan show runs/demo/artifacts/plan.json", "fewstep plan show ./scheduler --steps 8 --json")
)
def show(
    plan: Annotated[Path, typer.Argument(help="A plan file, a scheduler folder, or a pipeline folder.")],
    steps: Annotated[int | None, typer.Option(help="Steps, for a scheduler that has no plan of its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole plan as JSON.")] = False,
) -> None:
    """Show the rows of a plan: times, noise levels, coefficients and Q-Sched's scalars."""
    found = plan_at(plan, steps)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.markup import escape

    from fewstep.report.plans import plan_table
    from fewstep.report.terminal import to_rich

    out = console()
    out.print(to_rich(plan_table(found, f"{found.steps} steps, {found.prediction.kind}")))
    belongs = ", ".join(f"{name} {value}" for name, value in vars(found.identity).items() if value is not None)
    out.print(f"belongs to: {escape(belongs or 'any model')}")
    origin = ", ".join(f"{name} {value}" for name, value in found.origin.items() if not isinstance(value, dict | list))
    out.print(f"made by: {escape(origin or 'unknown')}", style="dim")
    suggest(f"fewstep plan export {plan} NEW_FOLDER --pipeline MODEL", f"fewstep generate --model MODEL --plan {plan}")


@app.command(
    "export",
    epilog=examples(
        "fewstep plan export plan.json ./scheduler",
        "fewstep plan export runs/demo/artifacts/plan.json my-few-steps --pipeline my-pipeline",
    ),
)
def export(
    plan: Annotated[Path, typer.Argument(help="A plan file.")],
    folder: Annotated[Path, typer.Argument(help="Scheduler folder to write; with --pipeline, a pipeline folder.")],
    pipeline: Annotated[Path | None, typer.Option(help="Write this pipeline with the plan, whole.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a plan as a diffusers scheduler folder, or a pipeline with it."""
    from fewstep.files import check_free, write_folder

    check_free(folder, overwrite)
    found = plan_at(plan, None)
    if pipeline is not None:
        from fewstep.pipelines import attach, load_pipeline, save_pipeline

        pipe = load_pipeline(pipeline)
        attach(pipe, found)
        save_pipeline(pipe, folder, overwrite)
        _say(f"Wrote {folder}", f"fewstep generate --model {folder}")
        return
    if (folder.parent / "model_index.json").exists():
        raise FewstepError(
            "a pipeline names the class of its scheduler, and would ignore a plan put into its folder",
            value=str(folder),
            hint=f"Write a new one: fewstep plan export {plan} NEW_FOLDER --pipeline {folder.parent}.",
        )
    from fewstep.pipelines.scheduler import PlanScheduler

    write_folder(folder, PlanScheduler.from_plan(found).save_pretrained, over="ours" if overwrite else "nothing")
    out = console()
    out.print(f"Wrote {folder}", markup=False, style="bold green")
    out.print(f"fewstep.PlanScheduler.from_pretrained({str(folder)!r}) reads it.", markup=False, style="dim")


@app.command(
    epilog=examples(
        "fewstep plan comfyui plan.json sampler.json",
        "fewstep plan comfyui ./scheduler sampler.json --steps 4",
    ),
)
def comfyui(
    plan: Annotated[Path, typer.Argument(help="A plan file, a scheduler folder, or a pipeline folder.")],
    file: Annotated[Path, typer.Argument(help="JSON to write: nodes of a workflow in ComfyUI's API format.")],
    steps: Annotated[int | None, typer.Option(help="Steps, for a scheduler that has no plan of its own.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the sigmas of a plan, and the name of ComfyUI's sampler that does the same, where there is one."""
    from fewstep.files import check_free, write_json
    from fewstep.pipelines.comfyui import comfyui_nodes, other_times

    check_free(file, overwrite)
    found = plan_at(plan, steps)
    nodes = comfyui_nodes(found)
    write_json(file, nodes, over="ours" if overwrite else "nothing")
    out = console()
    out.print(f"Wrote {file}", markup=False, style="bold green")
    if "sampler" in nodes:
        out.print(f"sampler {nodes['sampler']['inputs']['sampler_name']}, sigmas {nodes['sigmas']['inputs']['sigmas']}")
    else:
        out.print("No sampler of ComfyUI does what this plan does: with these sigmas any of them is another sampler.")
    if other_times(found):
        out.print("The network's times are not those of Stable Diffusion's noise schedule: for other models alone.")


@app.command(
    "import",
    epilog=examples(
        "fewstep plan import ./scheduler --steps 8 --out plan.json",
        "fewstep plan import my-pipeline --steps 4 --out plan.json",
    ),
)
def import_(
    scheduler: Annotated[Path, typer.Argument(help="A diffusers scheduler folder, or a pipeline folder.")],
    steps: Annotated[int, typer.Option(min=1, help="Inference steps, as the pipeline is called.")],
    out: Annotated[Path, typer.Option(help="Plan file to write.")] = Path("plan.json"),
    overwrite: Overwrite = False,
) -> None:
    """Read the plan out of a diffusers scheduler by probing its steps; refuses what is not linear."""
    from fewstep.files import check_free

    check_free(out, overwrite)
    found = plan_at(scheduler, steps)
    found.save(out, overwrite)
    _say(f"Wrote {out}", f"fewstep plan show {out}")


def plan_at(path: Path, steps: int | None) -> Plan:
    """The plan of a plan file, a scheduler folder or a pipeline folder.

    A pipeline's scheduler is read as its pipeline calls it, which may pass times of its own.

    Raises:
        FewstepError: nothing readable there, or `steps` is missing or does not fit.
    """
    from fewstep.plan import Plan

    pipeline = _pipeline_of(path)
    if pipeline is not None:
        from fewstep.pipelines import load_pipeline, plan_of

        pipe = load_pipeline(pipeline)
        plan = getattr(pipe.scheduler, "plan", None) or plan_of(pipe, _needed(steps, pipe.scheduler))
    elif path.is_dir():
        from fewstep.pipelines.probing import plan_of_scheduler

        scheduler = _scheduler(path)
        plan = getattr(scheduler, "plan", None) or plan_of_scheduler(scheduler, _needed(steps, scheduler))
    else:
        plan = Plan.load(path)
    if steps is not None:
        from fewstep.pipelines.caller import step_counts

        if steps not in step_counts(plan):
            raise PlanError(f"this plan has {plan.steps} steps", value=steps, hint="Leave --steps out.")
    found: Plan = plan
    return found


def _needed(steps: int | None, scheduler: Any) -> int:
    if steps is None:
        raise PlanError(f"{type(scheduler).__name__} has no fixed number of steps", hint="Add --steps N.")
    return steps


def _pipeline_of(folder: Path) -> Path | None:
    """The pipeline folder that this is, or whose scheduler this is."""
    if (folder / "model_index.json").exists():
        return folder
    inside = folder.name == "scheduler" and (folder.parent / "model_index.json").exists()
    return folder.parent if inside else None


def _scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder of its own, by the class name in its configuration."""
    from fewstep.files import read_json
    from fewstep.pipelines.load import open_scheduler

    inner = folder / "scheduler"
    place = inner if inner.is_dir() else folder
    if not (place / "scheduler_config.json").exists():
        raise FewstepError(
            f"{folder} holds no scheduler_config.json",
            hint="Give a scheduler folder, a pipeline folder or a plan file.",
        )
    return open_scheduler(read_json(place / "scheduler_config.json"))


def _say(done: str, then: str) -> None:
    console().print(done, markup=False, style="bold green")
    suggest(then)
