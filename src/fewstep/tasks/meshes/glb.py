"""GLB files: parts in their places, one of which may move."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import atomic
from fewstep.ownership import Over
from fewstep.tasks.meshes.mesh import Mesh

BODY, PART = (0.45, 0.55, 0.7), (0.95, 0.6, 0.25)
FLOAT, UNSIGNED = 5126, 5125
Views = list[tuple[bytes, dict[str, Any]]]
"""The file's numbers, and how each array is to be read."""


@dataclass(frozen=True, eq=False)
class Motion:
    """How a part moves: key frames of a node at a pivot.

    Attributes:
        part: its name.
        pivot: (3,), in the meshes' units.
        path: `rotation` (about the pivot) or `translation`.
        values: (K, 4) quaternions x, y, z, w, or (K, 3) places of the pivot.
        seconds: of the whole.
        extras: kept in the node, as JSON.
    """

    part: str
    pivot: Tensor
    path: str
    values: Tensor
    seconds: float = 4.0
    extras: Mapping[str, Any] = field(default_factory=dict)


def write_glb(path: str | Path, parts: Mapping[str, Mesh], motion: Motion | None = None, over: Over = "ours") -> None:
    """Write an object, with an animation `motion` where a part moves. The file's y points up, as glTF wants.

    Args:
        path: of the file.
        parts: meshes, z up.
        motion: of one of them.
        over: what may be replaced.

    Raises:
        FewstepError: no part has the motion's name.
    """
    if motion is not None and motion.part not in parts:
        raise FewstepError("no part has this name", value=motion.part)
    views: Views = []
    nodes: list[dict[str, Any]] = [{"name": "object", "rotation": [-(0.5**0.5), 0, 0, 0.5**0.5], "children": []}]
    meshes, animations = [], []
    for name, mesh in parts.items():
        places = _add(views, mesh.vertices.float(), FLOAT, "VEC3", bounds=True)
        corners = _add(views, mesh.faces.reshape(-1).int(), UNSIGNED, "SCALAR")
        moves = motion is not None and name == motion.part
        primitive = {"attributes": {"POSITION": places}, "indices": corners, "material": int(moves)}
        meshes.append({"name": name, "primitives": [primitive]})
        node: dict[str, Any] = {"name": name, "mesh": len(meshes) - 1}
        nodes[0]["children"].append(len(nodes))
        if motion is not None and moves:
            pivot = motion.pivot.tolist()
            animations.append(_animation(views, motion, len(nodes)))
            children = [len(nodes) + 1]
            nodes.append({"name": "joint", "translation": pivot, "children": children, "extras": dict(motion.extras)})
            node["translation"] = [-x for x in pivot]
        nodes.append(node)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "fewstep"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [_material(colour) for colour in (BODY, PART)],
    }
    document |= {"animations": animations} if animations else {}
    with atomic(path, over) as draft:
        draft.write_bytes(_packed(document, views))


def _animation(views: Views, motion: Motion, node: int) -> dict[str, Any]:
    moments = torch.linspace(0, motion.seconds, len(motion.values))
    times = _add(views, moments, FLOAT, "SCALAR", bounds=True)
    values = _add(views, motion.values.float(), FLOAT, f"VEC{motion.values.shape[1]}")
    sampler = {"input": times, "output": values, "interpolation": "LINEAR"}
    target = {"node": node, "path": motion.path}
    return {"name": "motion", "samplers": [sampler], "channels": [{"sampler": 0, "target": target}]}


def _material(colour: tuple[float, float, float]) -> dict[str, Any]:
    surface = {"baseColorFactor": [*colour, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.8}
    return {"pbrMetallicRoughness": surface, "doubleSided": True}


def _add(views: Views, values: Tensor, kind: int, shape: str, bounds: bool = False) -> int:
    """Append an array; returns its number."""
    about: dict[str, Any] = {"componentType": kind, "count": len(values), "type": shape}
    if bounds:
        rows = values.reshape(len(values), -1)
        about |= {"min": rows.amin(0).tolist(), "max": rows.amax(0).tolist()}
    views.append((values.contiguous().numpy().tobytes(), about))
    return len(views) - 1


def _packed(document: dict[str, Any], views: Views) -> bytes:
    """The two chunks of a GLB file, each filled up to four bytes."""
    places, begin = [], 0
    for data, _ in views:
        places.append({"buffer": 0, "byteOffset": begin, "byteLength": len(data)})
        begin += len(data)
    accessors = [{"bufferView": k, **about} for k, (_, about) in enumerate(views)]
    whole = {**document, "buffers": [{"byteLength": begin}], "bufferViews": places, "accessors": accessors}
    text = json.dumps(whole).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(part for part, _ in views)
    data += b"\0" * (-len(data) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(data))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
