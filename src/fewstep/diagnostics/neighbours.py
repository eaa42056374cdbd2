"""Dimension of data from distances alone: what estimates from a network have to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import FewstepError


def likelihood_dimension(points: Tensor, data: Tensor, k: int = 20) -> Tensor:
    """Maximum-likelihood dimension (B,) at points (B, ...) from their k nearest data (N, ...) (Levina, Bickel 2004).

    The mean of log(r_k / r_j) over the nearer neighbours, inverted with k - 2 for an unbiased estimate; a distance of
    zero (the point itself) does not count.
    """
    distances = _distances(points, data, k)
    logs = (distances[:, -1:] / distances[:, :-1]).log()
    return (k - 2) / logs.sum(1)


def local_spectrum(points: Tensor, data: Tensor, k: int = 20) -> Tensor:
    """Variances (B, min(k, D)) of the k nearest data (N, ...) around points (B, ...), largest first."""
    flat = data.double().flatten(1)
    nearest = torch.cdist(points.double().flatten(1), flat).topk(_fit(k, data), largest=False).indices
    patches = flat[nearest]
    centred = patches - patches.mean(1, keepdim=True)
    return torch.linalg.svdvals(centred).square() / (k - 1)


def spectrum_dimension(variances: Tensor, share: float = 0.95) -> Tensor:
    """Smallest number (B,) of leading variances (B, D) that hold this share of their sum: local PCA."""
    held = variances.cumsum(1) / variances.sum(1, keepdim=True)
    return (held < share).sum(1) + 1


def _distances(points: Tensor, data: Tensor, k: int) -> Tensor:
    between = torch.cdist(points.double().flatten(1), data.double().flatten(1))
    between = torch.where(between > 0, between, torch.inf)
    return between.topk(_fit(k, data), largest=False).values


def _fit(k: int, data: Tensor) -> int:
    if not 3 <= k < len(data):
        raise FewstepError(f"k must lie between 3 and the {len(data)} data points", value=k, hint="Use 20.")
    return k
