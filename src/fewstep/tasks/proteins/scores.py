"""Judges of predicted C-alpha traces (B, L, 3) in angstrom: precision, geometry, and what an ensemble holds."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.tasks.proteins.geometry import centred, superposed

TOLERANCES = (0.5, 1.0, 2.0, 4.0)
"""Of LDDT, in angstrom."""
BOND, CLASH = 3.8, 3.4
"""Distance of neighbours along a chain, and the least of others, in angstrom."""


def distances(x: Tensor) -> Tensor:
    """Distances (..., L, L) within structures (..., L, 3)."""
    return (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1).clamp(min=1e-12).sqrt()


def lddt(prediction: Tensor, truth: Tensor, cutoff: float = 15.0) -> Tensor:
    """Local distance difference test (B,) in [0, 1] (doi 10.1093/bioinformatics/btt473), C-alpha atoms alone.

    The share of true distances below the cutoff that the prediction keeps within 0.5, 1, 2 and 4 angstrom, averaged. It
    does not see whether a structure is mirrored: read `rmsd` beside it.

    Args:
        prediction: (B, L, 3).
        truth: (L, 3), or (B, L, 3).
        cutoff: of the true distances, in angstrom.
    """
    wanted = distances(truth)
    near = (wanted < cutoff) & ~torch.eye(wanted.shape[-1], dtype=torch.bool, device=wanted.device)
    off = (distances(prediction) - wanted).abs()
    kept = torch.stack([off < tolerance for tolerance in TOLERANCES]).double().mean(0)
    return (kept * near).sum((-1, -2)) / near.sum((-1, -2)).clamp(min=1)


def rmsd(prediction: Tensor, truth: Tensor) -> Tensor:
    """Root mean square distance (B,) in angstrom after superposition without reflection."""
    target = truth.expand_as(prediction)
    return (superposed(prediction, target) - target).square().sum(-1).mean(-1).sqrt()


def clashes(x: Tensor, least: float = CLASH) -> Tensor:
    """Pairs two or more apart along the chain that are closer than `least`, per residue, (B,)."""
    return torch.triu(distances(x) < least, diagonal=2).double().sum((-1, -2)) / x.shape[-2]


def bond_error(x: Tensor) -> Tensor:
    """Root mean square departure (B,) of neighbours along the chain from 3.8 angstrom."""
    return ((x.diff(dim=-2).square().sum(-1)).sqrt() - BOND).square().mean(-1).sqrt()


def diversity(x: Tensor) -> Tensor:
    """Mean `rmsd` over all pairs of an ensemble (S, L, 3), 0-dim; 0 for one structure."""
    pairs = torch.combinations(torch.arange(len(x), device=x.device))
    return rmsd(x[pairs[:, 0]], x[pairs[:, 1]]).mean() if len(pairs) else x.new_zeros(())


def populations(x: Tensor, conformers: Tensor, aligned: bool = True) -> Tensor:
    """Share (K,) of samples (S, L, 3) that are nearest to each conformer (K, L, 3).

    aligned: compare after superposition; else as they lie.
    """
    if aligned:
        distance = torch.stack([rmsd(x, conformer) for conformer in conformers], 1)
    else:
        distance = (x.unsqueeze(1) - conformers).square().sum((-1, -2))
    return torch.bincount(distance.argmin(1), minlength=len(conformers)).double() / len(x)


def ideal_helix(length: int) -> Tensor:
    """C-alpha atoms (L, 3) of a right-handed alpha helix: radius 2.3, 100 degrees and 1.5 angstrom a residue."""
    k = torch.arange(length, dtype=torch.float32)
    turn = torch.deg2rad(100 * k)
    return centred(torch.stack([2.3 * turn.cos(), 2.3 * turn.sin(), 1.5 * k], -1))
