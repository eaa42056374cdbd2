"""The contract of networks for masked tokens: what the clean tokens are, given some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.discrete.process import MaskedDiffusion
from fewstep.errors import FewstepError

TokenNetwork = Callable[..., Tensor]
"""(tokens (B, L), **condition) -> logits (B, L, V); no time, which the share of masks tells (arXiv 2406.07524)."""


@dataclass(frozen=True, eq=False)
class TokenDenoiser:
    """log p(x_i = v | z) of the clean tokens, with what is known built in: the mask is no token, revealed ones stay.

    Attributes:
        network: raw logits.
        process: whose tokens they are.
        condition: keyword arguments of every call.
    """

    network: TokenNetwork
    process: MaskedDiffusion
    condition: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, z: Tensor) -> Tensor:
        """Log-probabilities (B, L, V), float32 at least, for tokens z (B, L).

        Raises:
            FewstepError: logits of another shape.
        """
        logits = self.network(z, **self.condition)
        if logits.shape != (*z.shape, self.process.tokens):
            hint = f"The process has {self.process.tokens} symbols, the mask among them."
            raise FewstepError("the network's logits have another shape", value=tuple(logits.shape), hint=hint)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        symbol = torch.arange(self.process.tokens, device=z.device)
        found = logits.masked_fill(symbol == self.process.mask, -torch.inf).log_softmax(2)
        known = torch.zeros_like(found).masked_fill(symbol != z[..., None], -torch.inf)
        return torch.where((z == self.process.mask)[..., None], found, known)
