"""How far Re-DMD moves a limited student on a line, by what is compared at each noise level.

    python benchmarks/re_dmd.py

Teacher: modes at -2 and 2 of std 0.5; student: one Gaussian; reward tanh(x); flow times uniform in 0.02 to 0.98. The
reward-weighted difference of critic and teacher is followed to where it vanishes, by quadrature over sample, noise and
time: no network, no seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.files import write_json
from fewstep.runs import environment
from fewstep.testing.mixture import Mixture

COMPARED: dict[str, Callable[[Tensor], Tensor]] = {
    "clean predictions": torch.ones_like,
    "velocities": lambda t: 1 / t,
    "noise predictions": lambda t: (1 - t) / t,
}
BETAS, POINTS, LEVELS = (0.5, 2.0), 71, 16
TEACHER = Mixture.line([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])


def slopes(mean: float, std: float, beta: float, weight: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """E[exp(beta tanh x) weight(t) (G - F) (1, z)] of x = mean + std z."""
    grid = torch.linspace(-5, 5, POINTS, dtype=torch.float64)
    levels = 0.02 + 0.96 * (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    z, e, t = (g.flatten() for g in torch.meshgrid(grid, grid, levels, indexing="ij"))
    mass = (-(z**2 + e**2) / 2).exp()
    x = mean + std * z
    noisy = (1 - t) * x + t * e
    own = mean + (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2) * (noisy - (1 - t) * mean)
    away = own - TEACHER.estimates(noisy[:, None], 1 - t, t)[0][:, 0]
    moved = mass * (beta * x.tanh()).exp() * weight(t) * away / mass.sum()
    return float(moved.sum()), float((moved * z).sum())


def resting_place(beta: float, weight: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Mean and std where both slopes vanish, from near the symmetric student."""
    mean, std = 0.3, 1.7
    for _ in range(600):
        by_mean, by_std = slopes(mean, std, beta, weight)
        size = math.hypot(by_mean, by_std)
        if size < 5e-5:
            break
        step = 0.1 / max(1.0, size / 0.05)
        mean, std = mean - step * by_mean, std - step * by_std
    return {"mean": mean, "std": std, "slope": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/re-dmd.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: {str(beta): resting_place(beta, w) for beta in BETAS} for name, w in COMPARED.items()}
    write_json(given.output, {"environment": environment(), "compared": found})


if __name__ == "__main__":
    main()
