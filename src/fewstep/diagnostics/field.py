"""The field that diagnostics look at: a network's noise prediction at one time, and states to look at it from."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.jacobian import Function
from fewstep.process import Process


def noise_field(denoiser: Denoiser, t: float) -> Function:
    """States (B, ...) -> the noise prediction eps = -sigma score at process time `t`, whatever the network predicts."""
    return lambda x: denoiser.predict(x, t, "epsilon")


def noisy(process: Process, data: Tensor, t: float, generator: torch.Generator | None = None) -> Tensor:
    """States (B, ...) at process time `t` for data (B, ...), with fresh noise."""
    return process.alpha(t) * data + process.sigma(t) * normal(data, generator)


def normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `like`; a CPU generator serves every device."""
    device = generator.device if generator is not None else "cpu"
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float64).to(like)


def per_number(x: Tensor) -> Tensor:
    """Mean square (B,) over the numbers of each sample of x (B, ...)."""
    return x.double().flatten(1).square().mean(1)
