"""`fewstep score`: what scorers that people trust say of pictures, in this process or in environments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.shell import RUN, console, examples, names
from fewstep.errors import FewstepError


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "score",
        rich_help_panel=RUN,
        epilog=examples(
            "fewstep score pictures --with sharpness --with clip:FOLDER_OR_ID",
            'fewstep score cat.png --prompt "a cat" --with pickscore --out scores.json',
            "fewstep score pictures --with imagereward --in-env imagereward",
            "fewstep score pictures --with scorer.py:score --in-env mine --package piq==0.8.0",
            "fewstep score pictures --reference real --features random,pixels",
        ),
    )(run)


def run(
    images: Annotated[list[Path], typer.Argument(help="Pictures, and folders of them with metadata.jsonl or .txt.")],
    scorers: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="SCORER", help="clip, pickscore, aesthetic, quality:FOLDER, sharpness, ..."),
    ] = None,
    in_env: Annotated[
        str, typer.Option(metavar="NAME", help="Make an environment for the scorer, once, and run it there.")
    ] = "",
    package: Annotated[list[str] | None, typer.Option(help="What pip installs there; repeatable.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="One for all, or one each.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of real pictures, for distances.")] = None,
    features: Annotated[str, typer.Option(help="Feature networks of the distances, with commas.")] = "random,pixels",
    out: Annotated[Path | None, typer.Option(help="JSON of every number with what it depends on.")] = None,
) -> None:
    """Score pictures; prompts, seeds, resizing, weights and package versions are stored with every number.

    A scorer in an environment serves any recipe as the reward or judge outside:NAME.
    """
    from fewstep.files import check_free, write_json
    from fewstep.jobs import scoring
    from fewstep.metrics import load_features
    from fewstep.rewards import load_reward

    specs = scorers or []
    if not specs and reference is None:
        raise FewstepError("nothing to measure", hint="Give --with SCORER, or --reference FOLDER.")
    if in_env and len(specs) != 1:
        raise FewstepError("an environment holds one scorer", value=specs, hint="Give --with once beside --in-env.")
    if out is not None:
        check_free(out, overwrite=True)
    pictures = scoring.pictures_of(images, prompt or [])
    opened = {_made(spec, in_env, package or []): spec for spec in specs}
    rewards = {told: load_reward(spec) for spec, told in opened.items()}
    networks = {spec: load_features(spec) for spec in names(features)} if reference is not None else {}
    found = {"scores": scoring.scored(pictures, rewards)}
    if reference is not None:
        found["distances"] = scoring.compared(pictures, scoring.pictures_of([reference]), networks)
    _show(found)
    if out is not None:
        write_json(out, {**found, **scoring.protocol(pictures)})
        console().print(f"[bold green]Wrote[/bold green] {out}", highlight=False)


def _made(spec: str, in_env: str, packages: list[str]) -> str:
    """The spec of a reward; that of its environment, made now if there is none, where one is asked for.

    Raises:
        FewstepError: a scorer that runs in an environment alone, without one; packages without an environment.
    """
    from fewstep.rewards.environments import KNOWN, make_environment

    if in_env:
        make_environment(in_env, spec, packages)
        return f"outside:{in_env}"
    if spec in KNOWN:
        hint = f"Give it an environment of its own: --with {spec} --in-env {spec}."
        raise FewstepError("the packages of this scorer do not stand beside a current stack", value=spec, hint=hint)
    if packages:
        raise FewstepError("--package needs an environment to be installed in", hint="Add --in-env NAME.")
    return spec


def _show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    from rich import box
    from rich.table import Table

    if found["scores"]:
        table = Table("scorer", "mean", "95 % interval", "prompts", box=box.SIMPLE)
        for spec, row in found["scores"].items():
            table.add_row(spec, f"{row['mean']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}", str(row["n"]))
        console().print(table)
    if "distances" in found:
        table = Table("features", "Frechet", "KID", "pictures", "reference", box=box.SIMPLE)
        for spec, row in found["distances"].items():
            numbers = (f"{row['frechet']:.4g}", f"{row['kid']:.4g}", str(row["pictures"]), str(row["reference"]))
            table.add_row(spec, *numbers)
        console().print(table)
