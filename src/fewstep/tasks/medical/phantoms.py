"""Shepp and Logan's phantom (IEEE Trans. Nucl. Sci. 21, 1974) and random ones like it: ellipses, no patients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# value, half axes a b c, centre x y z, angle in degrees: the values of higher contrast (Toft, 1996)
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.81, 0.0, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.78, 0.0, -0.0184, 0.0, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.22, 0.0, 0.0, -18.0),
    (-0.2, 0.16, 0.41, 0.28, -0.22, 0.0, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.41, 0.0, 0.35, -0.15, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, 0.1, 0.25, 0.0),
    (0.1, 0.046, 0.046, 0.05, 0.0, -0.1, 0.25, 0.0),
    (0.1, 0.046, 0.023, 0.05, -0.08, -0.605, 0.0, 0.0),
    (0.1, 0.023, 0.023, 0.02, 0.0, -0.606, 0.0, 0.0),
    (0.1, 0.023, 0.046, 0.02, 0.06, -0.605, 0.0, 0.0),
)


def phantom(shape: Sequence[int], ellipses: Tensor | None = None) -> Tensor:
    """The phantom (1, H, W), or (1, D, H, W), in [0, 1] (random ones may leave it a little).

    Args:
        shape: (H, W), or (D, H, W) with slices along the first axis.
        ellipses: (N, 8) in place of the published ones: value, half axes, centre, angle in degrees.
    """
    table = torch.tensor(ELLIPSES, dtype=torch.float64) if ellipses is None else ellipses.double()
    axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in shape]
    grid = torch.meshgrid(*axes, indexing="ij")
    x, y, z = grid[-1], -grid[-2], grid[0] if len(shape) == 3 else torch.zeros(1, dtype=torch.float64)
    picture = torch.zeros(tuple(shape), dtype=torch.float64)
    for value, a, b, c, x0, y0, z0, degrees in table.tolist():
        turn = math.radians(degrees)
        u = (x - x0) * math.cos(turn) + (y - y0) * math.sin(turn)
        v = (y - y0) * math.cos(turn) - (x - x0) * math.sin(turn)
        picture = picture + value * ((u / a) ** 2 + (v / b) ** 2 + ((z - z0) / c) ** 2 <= 1)
    return picture.float().unsqueeze(0)


def random_phantoms(count: int, shape: Sequence[int], generator: torch.Generator, spread: float = 1.0) -> Tensor:
    """Phantoms (count, 1, ...) whose inner ellipses differ in value, size, place and angle; the skull turns as a whole.

    Args:
        count: how many.
        shape: as in `phantom`.
        generator: of the differences.
        spread: of them; 0 gives the published one.
    """
    table = torch.tensor(ELLIPSES, dtype=torch.float64)
    found = []
    for _ in range(count):
        z = spread * torch.randn(len(table), 8, generator=generator, dtype=torch.float64).clamp(-2, 2)
        changed = table.clone()
        changed[2:, 0] += 0.04 * z[2:, 0]
        changed[2:, 1:4] *= 1 + 0.12 * z[2:, 1:4]
        changed[2:, 4:7] += 0.02 * z[2:, 4:7]
        changed[:, 7] += 5 * z[0, 7]
        found.append(phantom(shape, changed))
    return torch.stack(found)
