"""How near one output is to another: signal to noise, structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError


def sqnr(reference: Tensor, found: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, 10 log10(sum y^2 / sum (y_q - y)^2); 200 at most, and -200 for NaN."""
    reference, found = reference.double(), found.double()
    return decibels(float(reference.square().sum()), float((found - reference).square().sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies; within 200 to both sides, and -200 for NaN."""
    if not noise < float("inf"):
        return -200.0
    ratio = torch.tensor(max(signal, 1e-300) / max(noise, 1e-300), dtype=torch.float64)
    return float((10 * ratio.log10()).clamp(-200, 200))


def mean_ssim(reference: Tensor, found: Tensor, window: int = 7) -> float:
    """Mean structural similarity of images (B, C, H, W) in [0, 1] (Wang et al. 2004), uniform windows, float32.

    MixDQ uses one window of nearly the whole image; a window larger than the image is cut to it. 0 where NaN.

    Raises:
        FewstepError: the shapes differ.
    """
    if reference.shape != found.shape:
        raise FewstepError("images of different shapes", value=(tuple(reference.shape), tuple(found.shape)))
    if not bool(found.isfinite().all()):
        return 0.0
    size = min(window, *reference.shape[-2:])
    a, b = (x.double().flatten(0, -4) if x.ndim > 4 else x.double() for x in (reference, found))

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, 1)

    count = size * size
    unbiased = count / max(count - 1, 1)
    ma, mb = mean(a), mean(b)
    va, vb, cov = (unbiased * (mean(x) - m) for x, m in ((a * a, ma * ma), (b * b, mb * mb), (a * b, ma * mb)))
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(value.mean())
