"""Rigid parts: joints that turn or slide, in batches of candidates, differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest

KINDS = ("revolute", "prismatic")


@dataclass(frozen=True, eq=False)
class RigidPart:
    """A joint, or a batch of candidates: x' = R(axis, q) (x - origin) + origin, or x' = x + q axis.

    Attributes:
        kind: `revolute` or `prismatic`.
        axis: (..., 3) directions, of any length.
        origin: (..., 3) points on the axis; sliding parts have no use for them.
        travel: (...) end of the range of q that begins at rest, 0: radians, or units of length. Its sign is the sense.
    """

    kind: str
    axis: Tensor
    origin: Tensor
    travel: Tensor

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FewstepError("unknown kind of joint", value=self.kind, hint=nearest(self.kind, KINDS))
        shapes = [tuple(t.shape) for t in (self.axis, self.origin, self.travel)]
        if shapes[0] != (*shapes[2], 3) or shapes[1] != shapes[0]:
            raise FewstepError("a joint needs axis and origin (..., 3) and travel (...)", value=shapes)

    def row(self, k: int) -> RigidPart:
        """One candidate of a batch."""
        return RigidPart(self.kind, self.axis[k], self.origin[k], self.travel[k])

    @property
    def direction(self) -> Tensor:
        """The axis as unit vectors (..., 3)."""
        return self.axis / self.axis.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rodrigues: R = I + sin(q) K + (1 - cos(q)) K^2 (..., 3, 3), K the cross product with the unit axis (..., 3).

    angle: (...), radians, counter-clockwise seen from the tip of the axis.
    """
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    K = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    q = angle[..., None, None]
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + q.sin() * K + (1 - q.cos()) * (K @ K)


def moved(points: Tensor, part: RigidPart, shares: Tensor) -> Tensor:
    """Points (N, 3) at shares (F,) of the travel, 0 at rest and 1 at its end: (..., F, N, 3)."""
    q, axis = part.travel[..., None] * shares, part.direction
    if part.kind == "prismatic":
        return points + (q[..., None] * axis[..., None, :])[..., None, :]
    turn = rotation(axis[..., None, :].expand(*q.shape, 3), q)
    origin = part.origin[..., None, None, :]
    return (points - origin) @ turn.transpose(-1, -2) + origin


def axis_error(found: RigidPart, true: RigidPart) -> float:
    """Angle in degrees between the lines of two axes, 0 to 90; the sense of the motion is not looked at."""
    a, b = found.direction.double(), true.direction.double()
    across, along = torch.linalg.cross(a, b).norm(), (a * b).sum().abs()
    return float(torch.rad2deg(torch.atan2(across, along)))


def origin_error(found: RigidPart, true: RigidPart, centre: Tensor) -> float:
    """How far the found axis passes from the true one beside the part's centre (3,), in units of length.

    The foot of the centre on the true axis is taken: the least distance of two lines, which is usual, is zero for lines
    that cross anywhere. 0 for sliding parts.
    """
    if "prismatic" in (found.kind, true.kind):
        return 0.0
    a, o = true.direction, true.origin
    foot = o + ((centre - o) @ a) * a
    return float(torch.linalg.cross(foot - found.origin, found.direction).norm())
