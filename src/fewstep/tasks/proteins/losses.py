"""Losses of AlphaFold 3's diffusion module (supplement, section 3.7.1) on C-alpha traces (B, L, 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.tasks.proteins.geometry import superposed
from fewstep.tasks.proteins.scores import TOLERANCES, distances


def aligned_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean square error (B,) per coordinate to the truth, which is first moved rigidly onto the prediction."""
    target = superposed(truth, prediction)
    return (prediction - target.detach()).square().mean((-1, -2))


def smooth_lddt_loss(prediction: Tensor, truth: Tensor, cutoff: float = 15.0) -> Tensor:
    """One less the smooth LDDT (B,): sigmoid(tolerance - |difference|) stands for each of its four steps."""
    wanted = distances(truth)
    near = (wanted < cutoff) & ~torch.eye(wanted.shape[-1], dtype=torch.bool, device=wanted.device)
    off = (distances(prediction) - wanted).abs()
    kept = torch.stack([torch.sigmoid(tolerance - off) for tolerance in TOLERANCES]).mean(0)
    return 1 - (kept * near).sum((-1, -2)) / near.sum((-1, -2)).clamp(min=1)


def diffusion_loss(prediction: Tensor, truth: Tensor, sigma: Tensor, sigma_data: float = 16.0) -> Tensor:
    """Aligned error weighted by (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, plus the smooth LDDT loss; (B,).

    Args:
        prediction: the clean prediction (B, L, 3).
        truth: (B, L, 3).
        sigma: noise levels (B,) in angstrom.
        sigma_data: of the preconditioning, in angstrom.
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * aligned_error(prediction, truth) + smooth_lddt_loss(prediction, truth)
