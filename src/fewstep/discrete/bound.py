"""How well a masked model explains given tokens: the evidence bound, in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.discrete.denoiser import TokenDenoiser


@torch.no_grad()
def negative_evidence_bound(
    denoiser: TokenDenoiser, x: Tensor, generator: torch.Generator, draws: int = 8, first: float = 1e-4
) -> Tensor:
    """An upper bound on -log p(x), nats per sample (B,), by `draws` noise levels of each (arXiv 2406.07524).

        E_t[ -alpha'_t / (1 - alpha_t) sum over masked i of -log p(x_i | z_t) ],  t stratified in (first, 1)

    Exact conditionals reach it. exp(bound / L) is the perplexity per token.

    Args:
        denoiser: the model.
        x: tokens (B, L).
        generator: of the noise, on the CPU.
        draws: noise levels per sample.
        first: the earliest time.
    """
    process = denoiser.process
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    offset = torch.rand(len(x), generator=generator, dtype=torch.float64)
    for k in range(draws):
        t = first + (1 - first) * (k + offset) / draws
        uniform = torch.rand(x.shape, generator=generator, dtype=torch.float64)
        z = process.add_noise(x, t.to(x.device), uniform.to(x.device))
        found = denoiser(z).gather(2, x[..., None]).squeeze(2).double()
        weight = (-process.slope(t) / (1 - process.alpha(t))).to(x.device)
        total = total - weight * torch.where(z == process.mask, found, 0.0).sum(1)
    return total * (1 - first) / draws
