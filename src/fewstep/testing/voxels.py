"""Distillation in minutes on shapes: class-conditional occupancy grids, in the bed of the digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.testing.digits import DigitBed, train_digits
from fewstep.testing.kernel_digits import Digits

FULL, SIDE, TEST = 32, 8, 0.2
PREDICTION = Prediction("edm", sigma_data=1.0)
"""A clean prediction, as noise does not fit through a narrow network, that is the state itself where noise ends: maps
to the data have nothing else that holds them there."""


@torch.no_grad()
def shape_measures(samples: Tensor, held_out: Tensor) -> dict[str, float]:
    """Shapes (N, D) against held-out ones (M, D) by intersection over union; -1 is empty, 1 occupied.

    `coverage`: share of held-out shapes that are the nearest one to some sample, over groups of as many samples;
    `nearest`: how much a held-out shape has in common with the sample that is nearest to it.
    """
    found = [overlap(part, held_out) for part in samples.split(len(held_out))]
    full = [table for table in found if len(table) == len(held_out)]
    covered = [len(table.argmax(1).unique()) / table.shape[1] for table in full]
    nearest = [float(table.max(0).values.mean()) for table in full]
    return {"coverage": sum(covered) / len(full), "nearest": sum(nearest) / len(full)}


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (n, m) of grids (n, D) and (m, D), occupied where positive; two empty ones: 1."""
    x, y = (a > 0).float(), (b > 0).float()
    both = x @ y.T
    either = x.sum(1)[:, None] + y.sum(1) - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def load_voxels(places: Sequence[Path], side: int = SIDE, seed: int = 0) -> Digits:
    """Shapes of .npz files (or of all in a folder) as grids (N, side^3) of -1 and 1, a fifth of them for the test.

    A file holds bit-packed grids of 32^3, (N, 4096) uint8 under each class's name, or `voxels` (N, 32, 32, 32, 4) with
    colour and opacity, which is one class. A cell of the small grid is occupied if any of its voxels is.

    Raises:
        FewstepError: a file of another form, no file, or less than two classes.
    """
    files = [f for place in places for f in (sorted(place.glob("*.npz")) if place.is_dir() else [place])]
    grids = [pooled_grids(grid, side) for file in files for grid in _classes(file)]
    if len(grids) < 2:
        raise FewstepError(
            "voxels need two classes at least", value=[str(f) for f in files], hint="Give .npz files of shapes."
        )
    labels = torch.cat([torch.full((len(grid),), k) for k, grid in enumerate(grids)])
    shapes = torch.cat([torch.from_numpy(grid).flatten(1) for grid in grids]).float() * 2 - 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[: round(TEST * len(order))], order[round(TEST * len(order)) :]
    return Digits(shapes[train], shapes[test], labels[train], labels[test])


def pooled_grids(grid: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Grids (N, 32, 32, 32) as smaller ones (N, side, side, side), bool: any voxel of a cell is occupied.

    Raises:
        FewstepError: 32 is no multiple of the side.
    """
    if FULL % side:
        raise FewstepError("32 voxels do not divide into so many cells", value=side, hint="Use 4, 8 or 16.")
    part = FULL // side
    return np.asarray(grid.reshape(-1, side, part, side, part, side, part).any(axis=(2, 4, 6)))


def _classes(file: Path) -> list[np.ndarray[Any, Any]]:
    """Boolean grids (N, 32, 32, 32) of each class of a file."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: one bare array
        raise FewstepError("these voxels cannot be read", value=str(file), hint="Give an .npz file.") from error
    if "voxels" in arrays:
        if arrays["voxels"].ndim == 5 and arrays["voxels"].shape[1:] == (FULL, FULL, FULL, 4):
            return [arrays["voxels"][..., 3] > 0]
        raise FewstepError("voxels must be (N, 32, 32, 32, 4)", value=arrays["voxels"].shape)
    packed = {name: array for name, array in arrays.items() if array.ndim == 2}
    if not packed or any(a.dtype != np.uint8 or a.shape[1] != FULL**3 // 8 for a in packed.values()):
        hint = "Give bit-packed grids of 32^3, (N, 4096) uint8 per class."
        raise FewstepError("these voxels have another form", value={n: a.shape for n, a in packed.items()}, hint=hint)
    return [np.unpackbits(a, axis=1).reshape(-1, FULL, FULL, FULL) > 0 for a in packed.values()]


def train_voxels(data: Digits, steps: int = 6000, width: int = 128, seed: int = 0) -> DigitBed:
    """Teacher and classifier of these shapes."""
    bed = train_digits(steps, width=width, seed=seed, data=data, prediction=PREDICTION)
    return replace(bed, further=shape_measures)
