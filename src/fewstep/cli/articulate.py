"""`fewstep articulate`: which way a part of a mesh moves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.shell import LOOK, Overwrite, console, examples, suggest


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "articulate",
        rich_help_panel=LOOK,
        epilog=examples(
            'fewstep articulate cabinet.obj "the door opens" --part door',
            'fewstep articulate desk.glb "the drawer slides out" --part drawer_2 --up y --out desk',
        ),
    )(run)


def run(
    mesh: Annotated[Path, typer.Argument(help="OBJ with named groups; GLB, PLY, STL or MJCF with the extra three-d.")],
    text: Annotated[str, typer.Argument(help="What happens, such as 'the door opens'.")],
    part: Annotated[str, typer.Option(help="Name of the part that moves, or a piece of it.")],
    up: Annotated[str, typer.Option(help="The file's axis that points up: z or y.")] = "z",
    steps: Annotated[int, typer.Option(min=1, help="Updates of each candidate.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the points and the noise.")] = 0,
    prior: Annotated[Path | None, typer.Option(help="Folder of a trained generator of motions.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of joint.json, moving.glb and report.html.")] = Path("articulated"),
    overwrite: Overwrite = False,
) -> None:
    """Find the joint of a part of a mesh from a text: axis, origin and range, with the motion to look at.

    What is likely comes from procedural doors, drawers, lids and handles unless a trained prior is given; the page of
    ATOP has its errors.
    """
    from fewstep.jobs.articulating import articulate_file
    from fewstep.tasks.articulation.articulate import Search

    search = Search(steps=steps, seed=seed)
    found = articulate_file(mesh, text, part, out, up=up, search=search, prior=prior, overwrite=overwrite)
    joint = found.joint
    axis, origin = (", ".join(f"{x:.3g}" for x in values.tolist()) for values in (joint.direction, joint.origin))
    console().print(
        f"[bold green]{joint.kind}[/bold green], axis {axis}, origin {origin}, range 0 to {joint.travel:.3g}"
    )
    for warning in found.warnings:
        console().print(f"[yellow]{warning}[/yellow]")
    console().print(f"Wrote {out}")
    suggest(f"open {out}/report.html")
