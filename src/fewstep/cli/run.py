"""`fewstep run` and `fewstep demo`: a recipe from end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import following, known
from fewstep.cli.fields import RecipeFields, chosen
from fewstep.cli.shell import RUN, Overrides, console, examples, suggest

Out = Annotated[Path | None, typer.Option(help="Run directory; runs/NAME unless given.", rich_help_panel="Run")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Discard what an earlier run left in the directory.", rich_help_panel="Run")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.", rich_help_panel="Run")]
Place = Callable[[typer.Context, dict[str, Any]], Path]
"""Where a command runs its recipe, see `add_recipe_command`."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "demo",
        rich_help_panel=RUN,
        epilog=examples("fewstep demo", "fewstep demo --fresh --set scheme=w8a8 --out runs/eight-bit"),
    )(demo)
    app.command(
        "run",
        rich_help_panel=RUN,
        epilog=examples(
            "fewstep run q-sched",
            "fewstep run recipes/q-sched.yaml --set model=PATH_OR_ID --set steps=4 --out runs/mine",
            "fewstep run runs/mine/recipe.yaml --out runs/again --dry-run",
        ),
    )(run)


def add_recipe_command(
    app: typer.Typer, name: str, fields: RecipeFields, panel: str, place: Place, *shown: str
) -> None:
    """Register a command that runs a recipe: the fields of the recipe, and what all such commands take.

    Args:
        app: where it is registered.
        name: of the command.
        fields: of its recipe.
        panel: of the help.
        place: (context, values by dotted key) -> the run directory unless `--out` names another; may change the values.
            Its docstring is the help.
        shown: examples.
    """

    def command(
        context: typer.Context,
        overrides: Overrides = None,
        out: Out = None,
        fresh: Fresh = False,
        dry_run: DryRun = False,
    ) -> None:
        given = chosen(context)
        folder = place(context, given)
        execute(fields.source, overrides or [], out or folder, fresh, dry_run, given)

    command.__doc__ = place.__doc__
    app.command(name, cls=fields.command(), rich_help_panel=panel, epilog=examples(*shown))(command)


def demo(
    overrides: Overrides = None,
    out: Out = Path("runs/demo"),
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """The main job on a shipped student: quantize, search the schedule, measure, report. Minutes on a laptop."""
    execute("demo", overrides or [], out or Path("runs/demo"), fresh, dry_run)


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.", autocompletion=known.recipes
        ),
    ],
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe from end to end. The same command on the same directory goes on where it was stopped."""
    execute(recipe, overrides or [], out or Path("runs") / Path(recipe).stem, fresh, dry_run)


def execute(
    name: str,
    overrides: list[str],
    out: Path,
    fresh: bool,
    dry_run: bool,
    chosen: Mapping[str, Any] | None = None,
) -> None:
    """Run a recipe by name or file with these values and overrides; what every command that runs one does."""
    from rich.markup import escape

    from fewstep import recipes
    from fewstep.recipes import kinds

    recipe = recipes.load(name, overrides, chosen)
    recipe.check()
    if dry_run:
        import yaml

        shown = yaml.safe_dump(recipe.resolved().plain(), sort_keys=False, allow_unicode=True)
        console().print(escape(shown), end="", soft_wrap=True)
        console(err=True).print(f"[dim]Nothing was run. It would go to {escape(str(out))}.[/dim]")
        return
    from fewstep.files import check_free
    from fewstep.runs import Run

    if results := getattr(recipe, "results", ""):
        check_free(results, overwrite=True)
    with Run(out, recipe.plain(), fresh=fresh) as started:
        made = kinds.runner(recipe.kind)(recipe, started)
    if started.leads:
        console().print(f"[bold green]Done.[/bold green] Open {escape(str(made or out))}")
        suggest(*following.after(recipe.kind, out))
