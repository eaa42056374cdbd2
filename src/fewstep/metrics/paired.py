"""How near pictures are to their twins, beside `distances.psnr`: structure, and features of random convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError
from fewstep.images import check_range
from fewstep.metrics.features import random_layers

WINDOW, WIDTH = 11, 1.5
"""Pixels, and the deviation of the Gaussian that weighs them (Wang et al., IEEE TIP 13(4), 2004)."""
K1, K2 = 0.01, 0.03


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W) or volumes (B, C, D, H, W) in [0, 1] to their twins; 1: equal.

        (2 m_x m_y + K1^2)(2 c_xy + K2^2) / ((m_x^2 + m_y^2 + K1^2)(v_x + v_y + K2^2)),

    the mean over all places of the window that lie within, and over channels (Wang et al., IEEE TIP 13(4), 2004):
    moments under a Gaussian window of 11 pixels, as scikit-image has with `gaussian_weights=True,
    use_sample_covariance=False, data_range=1`.

    Raises:
        FewstepError: images of another range, of different shapes, or smaller than the window.
    """
    x, y = check_range(images).double(), check_range(reference).double()
    if x.shape != y.shape or x.ndim not in (4, 5) or min(x.shape[2:]) < WINDOW:
        hint = f"Give two batches of equal shape whose sides are {WINDOW} at least."
        raise FewstepError("these have no structural similarity", value=(tuple(x.shape), tuple(y.shape)), hint=hint)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variances = _windowed(x * x) - mean_x**2 + _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    return (light * (2 * covariance + K2**2) / (variances + K2**2)).flatten(1).mean(1)


def perceptual_distance(images: Tensor, reference: Tensor, seed: int = 0) -> Tensor:
    """Distance (B,) of images (B, 3, H, W) in [0, 1] to their twins in random features; differentiable.

    As LPIPS (arXiv 1801.03924): at every place of three layers features of unit length, squared differences, mean over
    places, summed over layers. The network is that of the features `random:SEED`: it is untrained, so its numbers
    compare with one another alone. What was trained on one seed is judged by another.

    Raises:
        FewstepError: images of another range or of different shapes.
    """
    if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
        shapes = tuple(images.shape), tuple(reference.shape)
        raise FewstepError("twins of shape (B, 3, H, W) are compared", value=shapes, hint="Repeat a grey channel.")
    x, y = (2 * check_range(part).float() - 1 for part in (images, reference))
    total = x.new_zeros(len(x))
    for weight, bias in random_layers(seed):
        weight, bias = weight.to(x.device), bias.to(x.device)
        x, y = (F.relu(F.conv2d(part, weight, bias, stride=2, padding=1)) for part in (x, y))
        total = total + (F.normalize(x) - F.normalize(y)).square().sum(1).flatten(1).mean(1)
    return total


def _windowed(x: Tensor) -> Tensor:
    """Weighted means over all windows inside, along every axis but the first two."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (places / WIDTH).square())
    weights = weights / weights.sum()
    for axis in range(2, x.ndim):
        x = x.unfold(axis, WINDOW, 1) @ weights
    return x
