"""Meshes with named parts, read and checked: OBJ here, other formats by trimesh (extra `three-d`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_text

FORMATS = (".obj", ".glb", ".gltf", ".ply", ".stl")
LARGEST, MOST_FACES = 1 << 28, 2_000_000
"""Bytes of a file and triangles of a mesh beyond which nothing is read."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles: vertices (N, 3) in the file's units, z up; faces (M, 3), whole numbers. It need not be closed."""

    vertices: Tensor
    faces: Tensor

    def __post_init__(self) -> None:
        v, f = self.vertices, self.faces
        if v.ndim != 2 or f.ndim != 2 or v.shape[1:] != (3,) or f.shape[1:] != (3,) or not len(f):
            hint = "Export it as triangles again."
            raise FewstepError("a mesh needs vertices (N, 3) and faces (M, 3)", value=(v.shape, f.shape), hint=hint)
        if not bool(v.isfinite().all()) or int(f.min()) < 0 or int(f.max()) >= len(v):
            raise FewstepError("a mesh has vertices that are not finite or faces of none", hint="Export it again.")

    @property
    def corners(self) -> Tensor:
        """(M, 3, 3), the corners of each triangle."""
        return self.vertices[self.faces]


def read_meshes(path: str | Path, up: str = "z") -> dict[str, Mesh]:
    """The parts of a file by name: groups and objects of OBJ, geometries of GLB.

    Args:
        path: of the file.
        up: the file's axis that points up, `z` or `y` (glTF has y by its rules); it is turned to z.

    Raises:
        FewstepError: another ending, an empty, huge or broken file, or two parts of one name.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise FewstepError("no mesh is read from such a file", value=path.name, hint=f"Use {', '.join(FORMATS)}.")
    if up not in ("y", "z"):
        raise FewstepError("what points up is y or z", value=up)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise FewstepError(f"{path} is larger than {LARGEST >> 20} MiB", hint="Reduce the mesh, in Blender: Decimate.")
    parts = _obj(read_text(path, most=LARGEST)) if ending == ".obj" else _foreign(path)
    if not parts:
        raise FewstepError(f"{path} holds no triangles", hint="Export it as triangles.")
    faces = sum(len(mesh.faces) for mesh in parts.values())
    if faces > MOST_FACES:
        raise FewstepError(f"{path} has too many triangles", value=faces, hint=f"Reduce it below {MOST_FACES}.")
    return {name: _upright(mesh, up) for name, mesh in parts.items()}


def trimesh() -> ModuleType:
    """The package.

    Raises:
        FewstepError: it is not installed.
    """
    try:
        import trimesh as package
    except ImportError as error:
        hint = "Install fewstep[three-d], or export the mesh as OBJ."
        raise FewstepError("meshes other than OBJ are read by trimesh, which is not installed", hint=hint) from error
    return package


def _upright(mesh: Mesh, up: str) -> Mesh:
    if up == "z":
        return mesh
    x, y, z = mesh.vertices.unbind(1)
    return Mesh(torch.stack([x, -z, y], 1), mesh.faces)


def _obj(text: str) -> dict[str, Mesh]:
    """Vertices and faces of Wavefront OBJ; polygons become fans of triangles, curves and colours are passed over."""
    points: list[list[float]] = []
    faces: dict[str, list[list[int]]] = {}
    name, begun = "mesh", set[str]()
    for number, line in enumerate(text.splitlines(), 1):
        kind, *words = line.split("#")[0].split() or [""]
        try:
            if kind == "v":
                points.append([float(w) for w in words[:3]])
            elif kind in ("o", "g") and words:
                name = " ".join(words)
                if name in begun and faces.get(name):
                    raise FewstepError("two parts have one name", value=name, hint="Rename one of them.")
                begun.add(name)
            elif kind == "f":
                corners = [int(w.split("/")[0]) for w in words]
                corners = [k - 1 if k > 0 else len(points) + k for k in corners]
                fan = [[corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1)]
                faces.setdefault(name, []).extend(fan)
        except FewstepError:
            raise
        except ValueError as error:
            hint = "Export it again."
            raise FewstepError(f"line {number} of the OBJ file is broken", value=line[:80], hint=hint) from error
    vertices = torch.tensor(points, dtype=torch.float32).reshape(-1, 3)
    return {name: _compact(Mesh(vertices, torch.tensor(each))) for name, each in faces.items() if each}


def _compact(mesh: Mesh) -> Mesh:
    """The mesh with the vertices alone that it uses."""
    used, faces = mesh.faces.unique(return_inverse=True)
    return Mesh(mesh.vertices[used], faces)


def _foreign(path: Path) -> dict[str, Mesh]:
    """What trimesh reads, each geometry placed in the scene."""
    package = trimesh()
    try:
        scene: Any = package.load(path, force="scene")
        found: dict[str, Mesh] = {}
        for node in scene.graph.nodes_geometry:
            place, geometry = scene.graph[node]
            if not hasattr(scene.geometry[geometry], "faces"):
                continue
            placed = package.transform_points(scene.geometry[geometry].vertices, place)
            found[str(node)] = Mesh(
                torch.as_tensor(placed, dtype=torch.float32), torch.as_tensor(scene.geometry[geometry].faces).long()
            )
    except FewstepError:
        raise
    except Exception as error:  # trimesh raises what its many readers do
        raise FewstepError(f"{path} cannot be read: {error}", hint="Export it again.") from error
    return found
