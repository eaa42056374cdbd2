"""`fewstep plan`: look at plans, and move them to and from diffusers schedulers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.shell import Commands, Overwrite, console, examples
from fewstep.errors import FewstepError, PlanError, nearest

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
    found = read(plan, steps)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
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


@app.command(
    "export",
    epilog=examples(
        "fewstep plan export plan.json ./scheduler",
        "fewstep plan export runs/demo/artifacts/plan.json ./scheduler --overwrite",
    ),
)
def export(
    plan: Annotated[Path, typer.Argument(help="A plan file.")],
    folder: Annotated[Path, typer.Argument(help="Scheduler folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a plan as a diffusers scheduler folder, for any pipeline."""
    from fewstep.files import check_free, write_folder

    check_free(folder, overwrite)
    found = read(plan, None)
    write_folder(folder, found.to_scheduler().save_pretrained, over="ours" if overwrite else "nothing")
    _say(f"Wrote {folder}", f"PlanScheduler.from_pretrained({str(folder)!r}) from fewstep.plan.scheduler reads it.")


@app.command(
    "import",
    epilog=examples(
        "fewstep plan import ./scheduler --steps 8 --out plan.json",
        "fewstep plan import my-pipeline --steps 4 --out plan.json",
    ),
)
def import_(
    scheduler: Annotated[Path, typer.Argument(help="A diffusers scheduler folder, or a pipeline folder.")],
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")],
    out: Annotated[Path, typer.Option(help="Plan file to write.")] = Path("plan.json"),
    overwrite: Overwrite = False,
) -> None:
    """Read the plan out of a diffusers scheduler by probing its steps; refuses what is not linear."""
    from fewstep.files import check_free

    check_free(out, overwrite)
    found = read(scheduler, steps)
    found.save(out, overwrite)
    _say(f"Wrote {out}", f"fewstep plan show {out}")


def read(path: Path, steps: int | None) -> Plan:
    """The plan of a plan file, a scheduler folder or a pipeline folder.

    Raises:
        FewstepError: nothing readable there, or `steps` is missing or does not fit.
    """
    from fewstep.plan import Plan

    if path.is_dir():
        scheduler = _scheduler(path)
        plan = getattr(scheduler, "plan", None)
        if plan is None and steps is None:
            raise PlanError(f"{type(scheduler).__name__} has no fixed number of steps", mend="Add --steps N.")
        plan = plan or Plan.from_scheduler(scheduler, steps or 0)
    else:
        plan = Plan.load(path)
    if steps is not None and plan.steps != steps:
        raise PlanError(f"this plan has {plan.steps} steps", value=steps, mend="Leave --steps out.")
    found: Plan = plan
    return found


def _scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder, by the class name in its configuration."""
    from fewstep.files import read_json

    inner = folder / "scheduler"
    place = inner if inner.is_dir() else folder
    if not (place / "scheduler_config.json").exists():
        raise FewstepError(
            f"{folder} holds no scheduler_config.json",
            mend="Give a scheduler folder, a pipeline folder or a plan file.",
        )
    configuration = read_json(place / "scheduler_config.json")
    name = configuration.get("_class_name", "") if isinstance(configuration, dict) else ""
    if name == "PlanScheduler":
        from fewstep.plan.scheduler import PlanScheduler

        return PlanScheduler.from_pretrained(place)
    import diffusers

    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    if name not in known:
        raise FewstepError("not a scheduler of diffusers", value=name, mend=nearest(str(name), known))
    return getattr(diffusers, name).from_pretrained(place)


def _say(done: str, then: str) -> None:
    out = console()
    out.print(done, markup=False, style="bold green")
    out.print(f"Next: {then}", markup=False, style="dim")
