"""One step of a sampler of masked tokens: its law, a draw from it, the probability of what was drawn.

The discrete sibling of `fewstep.transition`: policy gradients need the probability of the step that a sampler took.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.discrete.process import MaskedDiffusion
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class TokenTransition:
    """Independent categorical laws of the next tokens.

    Attributes:
        log_probs: (B, L, V), the mask among the symbols.
    """

    log_probs: Tensor

    def draw(self, uniform: Tensor) -> Tensor:
        """The next tokens (B, L) for uniform numbers (B, L)."""
        return inverse_cdf(self.log_probs, uniform)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log-probability (B,) of next tokens (B, L), with its gradient."""
        return self.log_probs.gather(2, tokens[..., None]).squeeze(2).sum(1)


def reveal_probability(process: MaskedDiffusion, t: Tensor | float, s: Tensor | float, remask: float = 0.0) -> Tensor:
    """Probability that a masked token is revealed between t and s: (alpha_s - (1 - remask) alpha_t) / (1 - alpha_t).

    With `remask` 0 the ancestral sampler's (arXiv 2406.07524); else revealed tokens are masked again with this
    probability, and this is what keeps the marginals (ReMDM, arXiv 2503.00307).

    Raises:
        FewstepError: `remask` above `most_remasking`, or below 0.
    """
    most = most_remasking(process, t, s)
    if remask < 0 or bool((remask > most + 1e-9).any()):
        raise FewstepError("masking tokens again must leave a probability", value=remask, hint=f"At most {most:.4g}.")
    alpha_t, alpha_s = process.alpha(t), process.alpha(s)
    return ((alpha_s - (1 - remask) * alpha_t) / (1 - alpha_t)).clamp(0, 1)


def most_remasking(process: MaskedDiffusion, t: Tensor | float, s: Tensor | float) -> Tensor:
    """The largest probability of masking a token again between t and s: min(1, (1 - alpha_s) / alpha_t)."""
    return ((1 - process.alpha(s)) / process.alpha(t).clamp(min=1e-12)).clamp(max=1)


def token_transition(
    process: MaskedDiffusion, z: Tensor, log_p: Tensor, t: Tensor, s: Tensor, remask: float = 0.0
) -> TokenTransition:
    """Law of the tokens at times s (B,), for tokens z (B, L) at times t (B,).

    Args:
        process: of the tokens.
        z: tokens.
        log_p: of the clean tokens (B, L, V), as `TokenDenoiser` gives them.
        t: times of z.
        s: later ones, nearer to 0.
        remask: probability that a revealed token is masked again.
    """
    # 1 - p is exactly what stays masked; its logarithm is -inf in the last step
    revealed = reveal_probability(process, t, s, remask).to(log_p)[:, None, None]
    is_mask = torch.arange(process.tokens, device=z.device) == process.mask
    masked = torch.where(is_mask, (1 - revealed).log(), log_p + revealed.log())
    again = torch.tensor(remask, dtype=log_p.dtype, device=z.device)
    known = torch.where(is_mask, again.log(), log_p + (1 - again).log())
    return TokenTransition(torch.where((z == process.mask)[..., None], masked, known))


def inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Symbols (B, L) of the laws (B, L, V) at uniform numbers (B, L).

    In float64: rounding in single precision sharpens the law of many symbols, which looks like a better sampler.
    """
    cumulative = log_probs.detach().double().exp().cumsum(2)
    # strictly below: a symbol of no probability is never drawn, at 0 neither
    target = uniform.double()[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(2).clamp(max=log_probs.shape[2] - 1)
