"""Points of a mesh whose parts have names, one of which moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.tasks.articulation.mjcf import read_mjcf
from fewstep.tasks.articulation.rendering import PointCloud
from fewstep.tasks.meshes import Mesh, read_meshes
from fewstep.tasks.meshes.glb import BODY, PART

LIGHT = (0.4, -0.5, 0.77)


def read_parts(path: str | Path, up: str = "z") -> dict[str, Mesh]:
    """The parts of a mesh file (see `read_meshes`), or the bodies of MuJoCo's XML."""
    if Path(path).suffix.lower() == ".xml":
        return {name: mesh for name, mesh, _ in read_mjcf(path)}
    return read_meshes(path, up)


def named_part(parts: Mapping[str, Mesh], name: str) -> str:
    """The part's full name, of which a piece is enough where only one has it.

    Raises:
        FewstepError: none or several have it, or it is the whole object.
    """
    found = [name] if name in parts else [each for each in parts if name.lower() in each.lower()]
    if not found:
        raise FewstepError("the mesh has no such part", value=name, hint=nearest(name, parts))
    if len(found) > 1:
        raise FewstepError("several parts have this name", value=found, hint="Give the whole name of one.")
    if len(parts) == 1:
        hint = "Separate the part that moves into an object or group of its own."
        raise FewstepError("the mesh is one part alone, nothing stays in its place", value=found[0], hint=hint)
    return found[0]


def frame_of(parts: Mapping[str, Mesh]) -> tuple[Tensor, float]:
    """Centre (3,) and radius of the object in the file's units: what `sampled` moves and scales to 0.7 of the ball.

    Raises:
        FewstepError: the object has no extent.
    """
    vertices = torch.cat([mesh.vertices[mesh.faces.unique()] for mesh in parts.values()])
    low, high = vertices.amin(0), vertices.amax(0)
    radius = float((high - low).norm()) / 2
    if radius <= 0:
        raise FewstepError("the mesh has no extent", value=(high - low).tolist(), hint="Export it again.")
    return (low + high) / 2, radius / 0.7


def sampled(parts: Mapping[str, Mesh], part: str, count: int = 600, seed: int = 0) -> PointCloud:
    """Points on the surfaces, by area, half of them on the part: shaded by one light, the part in a colour of its own.

    Args:
        parts: of the object.
        part: the one that moves.
        count: of points.
        seed: of the places.

    Raises:
        FewstepError: the part or the rest has no area.
    """
    centre, radius = frame_of(parts)
    generator = torch.Generator().manual_seed(seed)
    moving = torch.cat([torch.full((len(mesh.faces),), name == part) for name, mesh in parts.items()])
    corners = torch.cat([(mesh.corners - centre) / radius for mesh in parts.values()])
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = across.norm(dim=1)
    picked = []
    for side in (moving, ~moving):
        if not float((area * side).sum()) > 0:
            raise FewstepError("a part has no surface", value=part, hint="Export it as triangles.")
        weights = (area * side).double().cumsum(0)
        draws = torch.rand(count // 2, generator=generator, dtype=torch.float64) * weights[-1]
        picked.append(torch.searchsorted(weights, draws).clamp(max=len(area) - 1))
    faces = torch.cat(picked)
    u, v = torch.rand(2, len(faces), 1, generator=generator)
    root = u.sqrt()
    a, b, c = corners[faces].unbind(1)
    positions = (1 - root) * a + root * (1 - v) * b + root * v * c
    shade = 0.55 + 0.45 * (across[faces] / area[faces, None].clamp(min=1e-20) @ torch.tensor(LIGHT)).abs()
    tints = torch.where(moving[faces][:, None], torch.tensor(PART), torch.tensor(BODY))
    return PointCloud(positions, shade[:, None] * tints, moving[faces])
