"""Reward-directed sampling of tokens by looking one reveal ahead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.discrete.denoiser import TokenDenoiser
from fewstep.errors import FewstepError, NonFiniteError


def tilted_tokens(denoiser: TokenDenoiser, value: Callable[[Tensor], Tensor], batch: int = 8192) -> TokenDenoiser:
    """A denoiser of the law p(x) h(x), for the value log h(z) = log E[h(x) | z] of states with masks.

        p_h(x_i = v | z) proportional to p(x_i = v | z) h(z with x_i = v)

    Exact where one token is revealed at a time (Doob's transform); what is revealed together is drawn as if the others
    stayed masked. Every masked position of a call costs one value per symbol, and the value is what decides the law:
    one that is learned makes a learned tilt.

    Args:
        denoiser: of the law to be tilted.
        value: tokens (B, L), with and without masks -> log h (B,).
        batch: sequences per call of the value.

    Raises:
        NonFiniteError: at a call, a value that is NaN or infinite.
    """
    process = denoiser.process
    symbols = torch.tensor([v for v in range(process.tokens) if v != process.mask])

    def network(z: Tensor) -> Tensor:
        log_p = denoiser(z)
        rows, places = (z == process.mask).nonzero(as_tuple=True)
        found = log_p.clone()
        for chosen in torch.arange(len(rows)).split(max(1, batch // len(symbols))):
            ahead = z[rows[chosen]].repeat_interleave(len(symbols), 0)
            ahead[torch.arange(len(ahead)), places[chosen].repeat_interleave(len(symbols))] = symbols.repeat(
                len(chosen)
            ).to(z.device)
            values = value(ahead)
            if values.shape != ahead.shape[:1]:
                raise FewstepError("a value is one number per sequence", value=tuple(values.shape))
            if not bool(values.isfinite().all()):
                raise NonFiniteError("the value of a sequence is NaN or infinite", hint="Clamp it.")
            added = torch.zeros(len(chosen), process.tokens, dtype=found.dtype, device=z.device)
            added[:, symbols] = values.reshape(len(chosen), -1).to(found)
            found[rows[chosen], places[chosen]] += added
        return found

    return TokenDenoiser(network, process)
