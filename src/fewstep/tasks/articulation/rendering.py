"""A differentiable renderer in plain torch: soft points from several sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.tasks.articulation.joints import RigidPart, moved


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points of an object within the unit ball, one part of which may move.

    Attributes:
        positions: (N, 3), at rest; z is up.
        colours: (N, C), in [0, 1].
        moving: (N,) bool, those of the part.
    """

    positions: Tensor
    colours: Tensor
    moving: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in (self.positions, self.colours, self.moving)]
        if self.positions.ndim != 2 or len({s[0] for s in shapes}) > 1 or shapes[0][1] != 3:
            raise FewstepError("a point cloud needs (N, 3), (N, C) and (N,)", value=shapes)

    def posed(self, part: RigidPart, shares: Tensor) -> Tensor:
        """All points (..., F, N, 3) at shares (F,) of the part's travel."""
        turned = moved(self.positions, part, shares)
        return torch.where(self.moving[:, None], turned, self.positions)


def orbit(azimuths: Tensor, elevation: float = 25.0) -> Tensor:
    """Orthographic cameras (V, 3, 3) around z, whose rows point to the right, up and towards the eye.

    azimuths: (V,), degrees; 0 looks from the side of +x. elevation: degrees above the horizon.
    """
    phi, theta = torch.deg2rad(azimuths), torch.deg2rad(torch.tensor(elevation, dtype=azimuths.dtype))
    zero = torch.zeros_like(phi)
    right = torch.stack([-phi.sin(), phi.cos(), zero], -1)
    eye = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin() + zero], -1)
    return torch.stack([right, torch.linalg.cross(eye, right), eye], -2)


def render(
    points: Tensor, colours: Tensor, views: Tensor, side: int, width: float = 0.7, depth: float = 0.08
) -> Tensor:
    """Pictures (..., V, C + 1, side, side) of points (..., N, 3) by cameras (V, 3, 3); the last channel is coverage.

    Every point is a Gaussian blob, so that a picture is a product of matrices and has a gradient everywhere:

        coverage = 1 - exp(-sum g_n),  colour = coverage * sum w_n g_n c_n / sum w_n g_n,  w_n = exp(z_n / depth)

    Args:
        points: within [-1, 1]; what is outside leaves the picture.
        colours: (N, C).
        views: see `orbit`.
        side: pixels.
        width: standard deviation of a blob, in pixels.
        depth: how much nearer to the eye a point must be to hide another, in units of length; inf adds them up.
    """
    seen = points.unsqueeze(-3) @ views.transpose(-1, -2)
    pixels = torch.arange(side, dtype=points.dtype, device=points.device)
    at = (seen[..., :2] * 0.5 + 0.5) * side - 0.5
    across = _small_exp(-0.5 * ((at[..., :1] - pixels) / width).square())
    down = _small_exp(-0.5 * ((side - 1 - at[..., 1:] - pixels) / width).square())
    nearness = seen[..., 2:] / depth
    weight = _small_exp(nearness - nearness.detach().amax(-2, keepdim=True))
    factors = torch.cat([torch.ones_like(weight), weight, weight * colours], -1)
    rows = (factors.unsqueeze(-1) * down.unsqueeze(-2)).flatten(-2)
    found = (rows.transpose(-1, -2) @ across).unflatten(-2, (-1, side))
    amount, total, sums = found[..., :1, :, :], found[..., 1:2, :, :], found[..., 2:, :, :]
    coverage = -torch.expm1(-amount)
    return torch.cat([coverage * sums / total.clamp(min=1e-20), coverage], -3)


def _small_exp(x: Tensor) -> Tensor:
    """exp(x), which ends at 2e-9: numbers below float32's normal range would make a CPU a hundred times slower."""
    return x.clamp(min=-20.0).exp()


def video(cloud: PointCloud, part: RigidPart, views: Tensor, frames: int, side: int, width: float = 0.7) -> Tensor:
    """The part going from rest to the end of its travel: (..., V, F, C + 1, side, side) in [0, 1]."""
    shares = torch.linspace(0, 1, frames, dtype=cloud.positions.dtype)
    drawn = render(cloud.posed(part, shares), cloud.colours, views, side, width)
    return drawn.transpose(-5, -4)


def part_mask(cloud: PointCloud, views: Tensor, side: int, width: float = 0.7) -> Tensor:
    """How much of each pixel shows the part at rest, (V, 1, side, side) in [0, 1]."""
    marks = cloud.moving[:, None].to(cloud.positions)
    return render(cloud.positions, marks, views, side, width)[:, :1]
