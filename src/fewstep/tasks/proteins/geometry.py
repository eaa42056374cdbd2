"""Rigid motions of structures (B, L, 3) in angstrom."""

from __future__ import annotations

import torch
from torch import Tensor


def centred(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structures (..., L, 3) with their mean at the origin; the mean of the atoms whose `mask` (..., L) is 1."""
    return x - _mean(x, mask)


def rotations(quaternions: Tensor) -> Tensor:
    """Rotation matrices (B, 3, 3), uniform where the quaternions (B, 4) are normal; their length does not matter."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def superposed(mobile: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """`mobile` (B, L, 3) moved rigidly onto `target` (B, L, 3), without reflection; no gradient through the motion.

    mask: (B, L), 1 for the atoms that count.

    Kabsch (Acta Cryst. A32, 1976): with U S V^T the singular value decomposition of mobile^T target, both centred, the
    rotation is U diag(1, 1, d) V^T, d the sign of det(U V^T).
    """
    with torch.no_grad():
        there = centred(target, mask) if mask is None else centred(target, mask) * mask.unsqueeze(-1)
        covariance = centred(mobile, mask).transpose(-1, -2).double() @ there.double()
        left, _, right = torch.linalg.svd(covariance)
        flip = torch.ones(*left.shape[:-2], 3, dtype=left.dtype, device=left.device)
        flip[..., 2] = torch.det(left @ right).sign()
        rotation = ((left * flip.unsqueeze(-2)) @ right).to(mobile.dtype)
    return centred(mobile, mask) @ rotation + _mean(target.detach(), mask)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean(-2, keepdim=True)
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
