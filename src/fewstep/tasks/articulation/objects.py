"""Procedural furniture with true joints: doors, drawers, lids and handles made of boxes, to train a prior on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.tasks.articulation.joints import RigidPart, rotation
from fewstep.tasks.articulation.points import frame_of, sampled
from fewstep.tasks.articulation.rendering import PointCloud
from fewstep.tasks.meshes import Mesh

_FACES = torch.tensor(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ]
)
Draw = Callable[[float, float], float]
"""(low, high) -> a number between them."""


@dataclass(frozen=True, eq=False)
class ArticulatedObject:
    """Parts by name, the one that moves, and how.

    Attributes:
        parts: meshes at rest.
        part: name of the one that moves.
        joint: true axis, origin and travel, in the meshes' units.
        family: `door`, `drawer`, `lid` or `handle`.
    """

    parts: dict[str, Mesh]
    part: str
    joint: RigidPart
    family: str

    def points(self, count: int, seed: int = 0) -> tuple[PointCloud, RigidPart]:
        """Points within the unit ball, and the joint in their frame."""
        return sampled(self.parts, self.part, count, seed), in_frame(self.joint, *frame_of(self.parts))


def in_frame(joint: RigidPart, centre: Tensor, radius: float) -> RigidPart:
    """A joint in the frame where the centre (3,) is 0 and the radius is 1."""
    travel = joint.travel / radius if joint.kind == "prismatic" else joint.travel
    return replace(joint, origin=(joint.origin - centre) / radius, travel=travel)


def out_of_frame(joint: RigidPart, centre: Tensor, radius: float) -> RigidPart:
    """The inverse of `in_frame`."""
    travel = joint.travel * radius if joint.kind == "prismatic" else joint.travel
    return replace(joint, origin=joint.origin * radius + centre, travel=travel)


def box(low: Sequence[float], high: Sequence[float]) -> Mesh:
    """A box between two corners."""
    ends = torch.tensor([low, high], dtype=torch.float32)
    corners = torch.stack([ends[(torch.arange(8) >> shift) & 1, k] for k, shift in enumerate((2, 1, 0))], 1)
    return Mesh(corners, _FACES)


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    shifts = torch.tensor([0, *(len(mesh.vertices) for mesh in meshes)]).cumsum(0)
    faces = [mesh.faces + shift for mesh, shift in zip(meshes, shifts, strict=False)]
    return Mesh(torch.cat([mesh.vertices for mesh in meshes]), torch.cat(faces))


def random_object(family: str, generator: torch.Generator, jitter: float = 15.0) -> ArticulatedObject:
    """An object of a family (see `FAMILIES`), its front to one of four sides, give or take `jitter` degrees."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    made = FAMILIES[family](draw)
    yaw = torch.tensor(math.radians(90 * int(draw(0, 4)) + draw(-jitter, jitter)))
    turn = rotation(torch.tensor([0.0, 0.0, 1.0]), yaw)
    parts = {name: Mesh(mesh.vertices @ turn.T, mesh.faces) for name, mesh in made.parts.items()}
    joint = replace(made.joint, axis=turn @ made.joint.axis, origin=turn @ made.joint.origin)
    return replace(made, parts=parts, joint=joint)


def door(draw: Draw) -> ArticulatedObject:
    """A slab before a body, whose hinge is at its left or right edge; opens towards the front."""
    w, d, h = draw(0.5, 1.4), draw(0.1, 1.0), draw(0.5, 2.0)
    thick, front = draw(0.02, 0.08), -d / 2
    span = draw(0.45, 1.0) * w
    left = draw(0, 1) < 0.5  # the hinge's side
    low, high = (-w / 2, -w / 2 + span) if left else (w / 2 - span, w / 2)
    bottom = draw(0.0, 0.4) * h
    slab = box((low, front - thick, bottom), (high, front, h))
    free, reach = (high - 0.1 * span if left else low + 0.1 * span), draw(0.03, 0.15)
    knob = box((free - 0.03, front - thick - reach, bottom + 0.4 * (h - bottom)), (free + 0.03, front - thick, 0.6 * h))
    moving = joined(slab, knob) if draw(0, 1) < 0.6 else slab
    hinge = torch.tensor([low if left else high, front - draw(0, 1) * thick, 0.0])
    angle = math.radians(draw(60, 110)) * (-1 if left else 1)
    joint = RigidPart("revolute", torch.tensor([0.0, 0.0, 1.0]), hinge, torch.tensor(angle))
    return ArticulatedObject({"body": _hollow(w, d, h), "door": moving}, "door", joint, "door")


def drawer(draw: Draw) -> ArticulatedObject:
    """A box that slides out of the front of a body."""
    w, d, h = draw(0.5, 1.4), draw(0.4, 1.0), draw(0.3, 1.4)
    front, thick = -d / 2, draw(0.02, 0.08)
    span, tall = draw(0.5, 0.95) * w, draw(0.25, 0.8) * h
    bottom = draw(0.05, 0.95) * (h - tall)
    face = box((-span / 2, front - thick, bottom), (span / 2, front, bottom + tall))
    inside = box((-0.45 * span, front, bottom), (0.45 * span, 0.4 * d, bottom + 0.8 * tall))
    middle, reach = bottom + tall / 2, draw(0.03, 0.15)
    grip = box((-0.2 * span, front - thick - reach, middle - 0.03), (0.2 * span, front - thick, middle + 0.03))
    moving = joined(face, inside, grip) if draw(0, 1) < 0.6 else joined(face, inside)
    travel = torch.tensor(draw(0.5, 0.85) * d)
    joint = RigidPart("prismatic", torch.tensor([0.0, -1.0, 0.0]), torch.zeros(3), travel)
    return ArticulatedObject({"body": _hollow(w, d, h), "drawer": moving}, "drawer", joint, "drawer")


def lid(draw: Draw) -> ArticulatedObject:
    """A slab on top of a body, whose hinge is at its back edge; opens upwards."""
    w, d, h = draw(0.5, 1.4), draw(0.5, 1.2), draw(0.05, 0.9)
    thick, over = draw(0.02, 0.12), draw(0.0, 0.04)
    moving = box((-w / 2 - over, -d / 2 - over, h), (w / 2 + over, d / 2, h + thick))
    hinge = torch.tensor([0.0, d / 2, h + draw(0, 1) * thick])
    angle = -math.radians(draw(60, 115))
    joint = RigidPart("revolute", torch.tensor([1.0, 0.0, 0.0]), hinge, torch.tensor(angle))
    return ArticulatedObject({"body": _hollow(w, d, h), "lid": moving}, "lid", joint, "lid")


def handle(draw: Draw) -> ArticulatedObject:
    """A bar on a column that turns about the column's axis, either way."""
    r, h, foot = draw(0.06, 0.15), draw(0.3, 1.0), draw(0.15, 0.35)
    column = joined(box((-r, -r, 0), (r, r, h)), box((-foot, -foot, 0), (foot, foot, draw(0.04, 0.15))))
    long, thick, wide = draw(0.35, 1.0), draw(0.05, 0.12), draw(0.03, 0.08)
    back = draw(0.0, 0.4) * long
    bar = box((-wide, -long, h), (wide, back, h + thick))
    hub = box((-1.3 * r, -1.3 * r, h), (1.3 * r, 1.3 * r, h + 1.2 * thick))
    angle = math.radians(draw(60, 100)) * (1 if draw(0, 1) < 0.5 else -1)
    joint = RigidPart("revolute", torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3), torch.tensor(angle))
    return ArticulatedObject({"body": column, "handle": joined(bar, hub)}, "handle", joint, "handle")


def _hollow(w: float, d: float, h: float, wall: float = 0.03) -> Mesh:
    """Five walls of a box that is open to the front."""
    x, y = w / 2, d / 2
    sides = [box((-x, -y, 0), (-x + wall, y, h)), box((x - wall, -y, 0), (x, y, h)), box((-x, y - wall, 0), (x, y, h))]
    return joined(*sides, box((-x, -y, 0), (x, y, wall)), box((-x, -y, h - wall), (x, y, h)))


FAMILIES: dict[str, Callable[[Draw], ArticulatedObject]] = {
    "door": door,
    "drawer": drawer,
    "lid": lid,
    "handle": handle,
}
