"""Objects of MuJoCo's XML (MJCF): visible geometry by bodies, with the joints that the file states."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_text
from fewstep.tasks.articulation.joints import RigidPart, rotation
from fewstep.tasks.meshes.mesh import LARGEST, Mesh, trimesh

HIDDEN = 3
"""Groups of geoms from here on are for collisions; MuJoCo does not show them either."""
JOINTS = {"hinge": "revolute", "slide": "prismatic"}
Node = ElementTree.Element
Named = tuple[str, Mesh, RigidPart | None]
"""A part's name, its mesh in the world's frame at rest, and its joint; None for what stands still."""


@dataclass
class _Model:
    """What the elements of one file refer to."""

    folder: Path
    radians: bool = False
    defaults: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    meshes: dict[str, Node] = field(default_factory=dict)
    found: list[tuple[str, RigidPart | None, list[Mesh]]] = field(default_factory=list)


def read_mjcf(path: str | Path, folder: str | Path | None = None) -> list[Named]:
    """The parts of a file: a body with a hinge or slide and what hangs on it is one, the rest is `base`.

    Travel is the end of the joint's range that is farther from rest. Boxes, cylinders, capsules, spheres and mesh files
    are read; angles and mesh folder are those of `compiler`, `include` and default classes are followed.

    Args:
        path: of the XML file.
        folder: what its mesh files lie relative to; that of the file unless given.

    Raises:
        FewstepError: no XML, a missing file, or no visible geometry.
    """
    root = _tree(Path(path))
    model = _Model(Path(folder or Path(path).parent))
    for compiler in root.iter("compiler"):
        model.radians = compiler.get("angle", "radian" if model.radians else "degree") == "radian"
        if folder is None and compiler.get("meshdir"):
            model.folder = Path(path).parent / str(compiler.get("meshdir"))
    for default in root.findall("default"):
        _read_defaults(model, default, {})
    for mesh in root.iter("mesh"):
        if mesh.get("file"):
            model.meshes[mesh.get("name") or Path(str(mesh.get("file"))).stem] = mesh
    model.found.append(("base", None, []))
    for world in root.findall("worldbody"):
        _read_body(model, world, torch.eye(4), "", 0)
    parts = [(name, _joined(pieces), joint) for name, joint, pieces in model.found if pieces]
    if not parts:
        raise FewstepError(f"{path} shows no geometry", hint="Its geoms may be those of collisions alone.")
    return parts


def _tree(path: Path, depth: int = 0) -> Node:
    """The file with its includes put in their places."""
    if depth > 8:
        raise FewstepError("files include each other in a circle", value=str(path))
    try:
        root = ElementTree.fromstring(read_text(path, most=LARGEST))
    except ElementTree.ParseError as error:
        raise FewstepError(f"{path} is not XML ({error})", hint="Give a MuJoCo model.") from error
    for parent in list(root.iter()):
        for k, child in reversed(list(enumerate(parent))):
            if child.tag == "include":
                parent[k : k + 1] = list(_tree(path.parent / str(child.get("file")), depth + 1))
    return root


def _read_defaults(model: _Model, node: Node, above: Mapping[str, dict[str, str]]) -> None:
    own = {tag: dict(values) for tag, values in above.items()}
    for child in node:
        if child.tag != "default":
            own[child.tag] = {**own.get(child.tag, {}), **child.attrib}
    name = node.get("class", "main")
    model.defaults.update({(name, tag): values for tag, values in own.items()})
    for child in node.findall("default"):
        _read_defaults(model, child, own)


def _read_body(model: _Model, body: Node, place: Tensor, chosen: str, part: int) -> None:
    """Add a body's geometry to a part, its own if it has a joint, and go on to the bodies inside."""
    chosen = body.get("childclass", chosen)
    if body.tag == "body":
        place = place @ _pose(model, body.attrib)
    for joint in body.findall("joint"):
        given = _attributes(model, joint, chosen)
        if given.get("type", "hinge") in JOINTS:
            name = body.get("name") or joint.get("name") or f"part-{len(model.found)}"
            model.found.append((name, _joint(model, given, place), []))
            part = len(model.found) - 1
    for geom in body.findall("geom"):
        given = _attributes(model, geom, chosen)
        mesh = _shape(model, given) if int(given.get("group", 0)) < HIDDEN else None
        if mesh is not None:
            at = place @ _pose(model, given)
            model.found[part][2].append(Mesh(mesh.vertices @ at[:3, :3].T + at[:3, 3], mesh.faces))
    for inner in body.findall("body"):
        _read_body(model, inner, place, chosen, part)


def _attributes(model: _Model, node: Node, chosen: str) -> dict[str, str]:
    name = node.get("class", chosen) or "main"
    return {**model.defaults.get((name, node.tag), {}), **node.attrib}


def _joint(model: _Model, given: Mapping[str, str], place: Tensor) -> RigidPart:
    kind = JOINTS[given.get("type", "hinge")]
    axis = place[:3, :3] @ _numbers(given.get("axis", "0 0 1"))
    origin = place[:3, :3] @ _numbers(given.get("pos", "0 0 0")) + place[:3, 3]
    ends = _numbers(given.get("range", "0 1"))
    if kind == "revolute" and not model.radians:
        ends = torch.deg2rad(ends)
    return RigidPart(kind, axis / axis.norm(), origin, ends[int(ends.abs().argmax())])


def _pose(model: _Model, given: Mapping[str, str]) -> Tensor:
    """A frame (4, 4) from pos and quat, axisangle or euler (about its own axes x, y, z in turn)."""
    found = torch.eye(4)
    if "pos" in given:
        found[:3, 3] = _numbers(given["pos"])
    if "quat" in given:
        q = _numbers(given["quat"])
        q = q / q.norm()
        angle = 2 * torch.atan2(q[1:].norm(), q[0])
        found[:3, :3] = rotation(q[1:] / q[1:].norm().clamp(min=1e-12), angle)
    elif "axisangle" in given:
        *axis, angle = _angles(model, given["axisangle"], since=3)
        found[:3, :3] = rotation(torch.stack(axis) / torch.stack(axis).norm(), angle)
    elif "euler" in given:
        for k, angle in enumerate(_angles(model, given["euler"])):
            found[:3, :3] = found[:3, :3] @ rotation(torch.eye(3)[k], angle)
    return found


def _angles(model: _Model, text: str, since: int = 0) -> Iterator[Tensor]:
    for k, number in enumerate(_numbers(text)):
        yield torch.deg2rad(number) if k >= since and not model.radians else number


def _shape(model: _Model, given: Mapping[str, str]) -> Mesh | None:
    """A geom's triangles in its own frame; None for planes and the like."""
    kind, size = given.get("type", "sphere"), _numbers(given.get("size", "0 0 0")).tolist()
    if "mesh" in given and kind in ("mesh", "sphere"):
        return _stored(model, given["mesh"])
    if kind == "box":
        return _from_trimesh(trimesh().creation.box(extents=[2 * s for s in size]))
    if kind == "cylinder":
        return _from_trimesh(trimesh().creation.cylinder(radius=size[0], height=2 * size[1], sections=24))
    if kind == "capsule":
        return _from_trimesh(trimesh().creation.capsule(radius=size[0], height=2 * size[1], count=[16, 16]))
    if kind == "sphere" and size[0] > 0:
        return _from_trimesh(trimesh().creation.icosphere(subdivisions=2, radius=size[0]))
    return None


def _stored(model: _Model, name: str) -> Mesh:
    node = model.meshes.get(name)
    if node is None:
        raise FewstepError("the model names a mesh that it does not have", value=name)
    file = model.folder / str(node.get("file"))
    if not file.is_file():
        raise FewstepError("a mesh file of the model is absent", value=str(file), hint="Keep it beside the XML.")
    mesh = _from_trimesh(trimesh().load(file, force="mesh"))
    return Mesh(mesh.vertices * _numbers(node.get("scale", "1 1 1")), mesh.faces)


def _from_trimesh(mesh: Any) -> Mesh:
    return Mesh(torch.as_tensor(mesh.vertices.copy()).float(), torch.as_tensor(mesh.faces.copy()).long())


def _joined(pieces: list[Mesh]) -> Mesh:
    shifts = torch.tensor([0, *(len(p.vertices) for p in pieces)]).cumsum(0)
    faces = [piece.faces + shift for piece, shift in zip(pieces, shifts, strict=False)]
    return Mesh(torch.cat([piece.vertices for piece in pieces]), torch.cat(faces))


def _numbers(text: str) -> Tensor:
    try:
        found = torch.tensor([float(word) for word in text.split()])
    except ValueError as error:
        raise FewstepError("the model has a number that is none", value=text) from error
    if any(not math.isfinite(x) for x in found.tolist()):
        raise FewstepError("the model has a number that is not finite", value=text)
    return found
