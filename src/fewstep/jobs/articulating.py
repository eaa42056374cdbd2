"""A mesh file to a folder with its joint: JSON, an animated GLB, a loop and a page."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.files import check_free, write_folder, write_json, write_text
from fewstep.report import Block, Code, FactList, Figure, Highlights, Note, Page, save_page
from fewstep.report.images import image_grid, save_video
from fewstep.tasks.articulation.animation import key_frames
from fewstep.tasks.articulation.articulate import Articulation, Search, articulate
from fewstep.tasks.articulation.joints import RigidPart
from fewstep.tasks.articulation.objects import in_frame
from fewstep.tasks.articulation.points import frame_of, named_part, read_parts, sampled
from fewstep.tasks.articulation.prior import load_prior
from fewstep.tasks.articulation.rendering import PointCloud, orbit, render
from fewstep.tasks.meshes import Mesh, write_glb

SIDE, POINTS, TURN = 128, 2000, 24
"""Pixels and points of the report's pictures, and frames of its turntable."""
RED = (0.9, 0.15, 0.15)


def articulate_file(
    file: Path,
    text: str,
    part: str,
    out: Path,
    *,
    up: str = "z",
    search: Search = Search(),
    prior: Path | None = None,
    overwrite: bool = False,
) -> Articulation:
    """Find the joint of a part of a mesh file, and write `joint.json`, `moving.glb`, `motion.gif` and `report.html`.

    Args:
        file: OBJ, GLB, PLY, STL or MJCF.
        text: what happens.
        part: the one that moves.
        out: folder that is made.
        up: the file's axis that points up.
        search: how the joint is looked for.
        prior: folder of a trained generator of motions; what procedural furniture does unless given.
        overwrite: replace a folder that fewstep wrote.
    """
    check_free(out, overwrite)
    parts = read_parts(file, up)
    generator = None if prior is None else load_prior(prior)
    found = articulate(parts, part, text, prior=generator, search=search)
    name = named_part(parts, part)

    def fill(folder: Path) -> None:
        write_json(folder / "joint.json", joint_document(found, name, text, up))
        write_glb(folder / "moving.glb", parts, key_frames(found.joint, name))
        save_video(_motion(parts, name, found.joint), folder / "motion.gif", rate=8)
        save_video(_turntable(parts, name, found.joint), folder / "turntable.gif", rate=8)
        save_page(_page(found, name, text, file, folder), folder / "report.html")
        write_text(folder / "README.txt", "Made by fewstep articulate: open report.html.\n")

    write_folder(out, fill, over="ours" if overwrite else "nothing")
    return found


def joint_document(found: Articulation, part: str, text: str, up: str) -> dict[str, Any]:
    """The joint in the file's units, z up, as JSON."""
    joint = found.joint
    return {
        "fewstep": "joint",
        "part": part,
        "text": text,
        "type": joint.kind,
        "axis": joint.direction.tolist(),
        "origin": joint.origin.tolist(),
        "range": [0.0, float(joint.travel)],
        "unit": "radians" if joint.kind == "revolute" else "the mesh's units",
        "up": "z" if up == "z" else "z; the file's y points up and was turned to it",
        "misfit": dict(found.misfit),
        "warnings": list(found.warnings),
    }


def _cloud(parts: Mapping[str, Mesh], part: str, joint: RigidPart) -> tuple[PointCloud, RigidPart]:
    """Points of the object and, standing still, of a red line along the axis; the joint in their frame."""
    cloud, centred = sampled(parts, part, POINTS), in_frame(joint, *frame_of(parts))
    where = cloud.positions[cloud.moving].mean(0) - centred.origin
    foot = centred.origin + (where @ centred.direction) * centred.direction
    line = foot + torch.linspace(-0.5, 0.5, 200)[:, None] * centred.direction
    drawn = PointCloud(
        torch.cat([cloud.positions, line]),
        torch.cat([cloud.colours, torch.tensor(RED).expand(len(line), 3)]),
        torch.cat([cloud.moving, torch.zeros(len(line), dtype=torch.bool)]),
    )
    return drawn, centred


@torch.no_grad()
def _motion(parts: Mapping[str, Mesh], part: str, joint: RigidPart) -> Tensor:
    """Out and back, from three sides (T, 3, H, W)."""
    cloud, centred = _cloud(parts, part, joint)
    way = torch.linspace(0, 1, 10)
    shares = torch.cat([way, way.flip(0)])
    views = orbit(torch.tensor([30.0, 150.0, 270.0]), 30.0)
    sides = [_white(render(cloud.posed(centred, share[None])[0], cloud.colours, views, SIDE, 1.0)) for share in shares]
    return torch.stack([image_grid(each, columns=3) for each in sides])


@torch.no_grad()
def _turntable(parts: Mapping[str, Mesh], part: str, joint: RigidPart) -> Tensor:
    """Once around while the part goes out and back (T, 3, H, W)."""
    cloud, centred = _cloud(parts, part, joint)
    frames = []
    for k in range(TURN):
        share = torch.tensor([0.5 - 0.5 * math.cos(2 * math.pi * k / TURN)])
        view = orbit(torch.tensor([360.0 * k / TURN]), 25.0)
        frames.append(_white(render(cloud.posed(centred, share)[0], cloud.colours, view, 3 * SIDE // 2, 1.5))[0])
    return torch.stack(frames)


def _white(drawn: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) on white from colours and coverage (..., 4, H, W)."""
    return drawn[..., :3, :, :] + 1 - drawn[..., 3:, :, :]


def _page(found: Articulation, part: str, text: str, file: Path, folder: Path) -> Page:
    joint = found.joint
    turns = joint.kind == "revolute"
    far = f"{math.degrees(float(joint.travel)):.0f}°" if turns else f"{float(joint.travel):.3g} units"
    numbers = [
        ("turns" if turns else "slides", part, joint.kind),
        (far, "travel", "from rest; the sign is the sense about the axis"),
    ]
    facts = {"axis": _numbers(joint.direction), "origin": _numbers(joint.origin), "text": text, "file": file.name}
    facts |= {f"misfit, {kind}": f"{value:.4f}" for kind, value in found.misfit.items()}
    blocks: list[Block] = [Highlights("The joint", numbers)]
    blocks += [Note(warning, tone="warning") for warning in found.warnings]
    blocks += [
        Figure("Motion", _inline(folder / "motion.gif"), "From three sides; the axis in red."),
        Figure("Turntable", _inline(folder / "turntable.gif"), "Once around while the part goes out and back."),
        FactList(
            "In numbers", facts, "In the mesh's units, z up. The smaller misfit decides what kind of joint it is."
        ),
        Code("Again", f'fewstep articulate {file.name} "{text}" --part {part}'),
        Note(
            "The joint is what is likely by how procedural furniture of boxes moves, carried over to this part. "
            "Look at the motion before you rely on it.",
            "How far to trust this",
        ),
    ]
    return Page(f"How {part} moves", f"“{text}”: {part} {'turns' if turns else 'slides'} by {far}.", blocks)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{x:.4g}" for x in values.tolist())


def _inline(file: Path) -> str:
    return "data:image/gif;base64," + base64.b64encode(file.read_bytes()).decode()
