"""Short sequences of few symbols, enumerated: the exact masked model, and the exact law of any sampler of tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.discrete import MaskedDiffusion, RevealPlan, TokenDenoiser, token_transition
from fewstep.errors import FewstepError


@dataclass(frozen=True, eq=False)
class TokenChain:
    """A Markov chain of `length` tokens out of `symbols`; the mask is the next symbol.

    Attributes:
        symbols: how many.
        length: of a sequence.
        concentration: of the Dirichlet law of the rows of the transition matrix; small: nearly certain.
        seed: of that draw.
        schedule: of the masks.
    """

    symbols: int = 3
    length: int = 6
    concentration: float = 0.25
    seed: int = 0
    schedule: str = "log-linear"

    @property
    def process(self) -> MaskedDiffusion:
        """Of the tokens."""
        return MaskedDiffusion(self.symbols + 1, self.symbols, self.schedule)

    @cached_property
    def sequences(self) -> Tensor:
        """Every sequence (symbols^length, length)."""
        return torch.tensor(list(itertools.product(range(self.symbols), repeat=self.length)))

    @cached_property
    def states(self) -> Tensor:
        """Every sequence with masks ((symbols + 1)^length, length), where `number` says."""
        return torch.tensor(list(itertools.product(range(self.symbols + 1), repeat=self.length)))

    def number(self, z: Tensor) -> Tensor:
        """The place (B,) of tokens (B, L) among `states`."""
        weights = (self.symbols + 1) ** torch.arange(self.length - 1, -1, -1)
        return (z * weights).sum(1)

    @cached_property
    def law(self) -> Tensor:
        """Probability of each of `sequences`, float64; the first token is uniform."""
        g = torch.Generator().manual_seed(self.seed)
        gamma = torch._standard_gamma(
            torch.full((self.symbols, self.symbols), self.concentration, dtype=torch.float64), generator=g
        )
        matrix = gamma / gamma.sum(1, keepdim=True)
        steps = matrix[self.sequences[:, :-1], self.sequences[:, 1:]]
        return steps.prod(1) / self.symbols

    @cached_property
    def posterior(self) -> Tensor:
        """p(x_i = v | z) for every state z (states, L, symbols + 1); uniform where a state has no probability."""
        tables = []
        for z in self.states.split(512):
            agrees = ((z[:, None] == self.sequences[None]) | (z[:, None] == self.symbols)).all(2).double()
            weight = agrees * self.law
            one_hot = torch.nn.functional.one_hot(self.sequences, self.symbols + 1).double()
            joint = torch.einsum("zs,siv->ziv", weight, one_hot)
            total = weight.sum(1)[:, None, None]
            flat = torch.full_like(joint, 1 / self.symbols)
            flat[..., self.symbols] = 0
            tables.append(torch.where(total > 0, joint / total.clamp(min=1e-300), flat))
        return torch.cat(tables)

    def denoiser(self) -> TokenDenoiser:
        """The exact masked model."""
        logits = self.posterior.log().clamp(min=-1e4)
        return TokenDenoiser(lambda z: logits[self.number(z)], self.process)

    def law_of(self, plan: RevealPlan, denoiser: TokenDenoiser) -> Tensor:
        """Probability of each of `sequences` under a plan of independent reveals at temperature 1, enumerated.

        Raises:
            FewstepError: a row of another kind.
        """
        if any(row.order != "independent" or row.temperature != 1 for row in plan.rows):
            raise FewstepError("only independent reveals at temperature 1 are enumerated", value=plan.name)
        now = torch.zeros(len(self.states), dtype=torch.float64)
        now[self.number(torch.full((1, self.length), self.symbols))] = 1
        for row in plan.rows:
            now = self._after(now, row.time, row.next_time, row.remask, denoiser)
        return now[self.number(self.sequences)]

    def _after(self, now: Tensor, t: float, s: float, remask: float, denoiser: TokenDenoiser) -> Tensor:
        found = torch.zeros_like(now)
        for start in now.nonzero().squeeze(1).split(256):
            z = self.states[start]
            at, to = (torch.full((len(z),), value, dtype=torch.float64) for value in (t, s))
            law = token_transition(self.process, z, denoiser(z).double(), at, to, remask).log_probs.exp()
            joint = law[:, 0]  # of the first i tokens together, (b, (symbols + 1)^i), in the order of `states`
            for i in range(1, self.length):
                joint = (joint[:, :, None] * law[:, i][:, None]).flatten(1)
            found += now[start] @ joint
        return found

    def distance(self, tokens: Tensor) -> float:
        """Total variation between the true law and the frequencies of tokens (N, L)."""
        return total_variation(self.frequencies(tokens), self.law)

    def frequencies(self, tokens: Tensor) -> Tensor:
        """How often each of `sequences` occurs among tokens (N, L)."""
        counts = torch.bincount(self.number(tokens), minlength=len(self.states)).double()
        return counts[self.number(self.sequences)] / len(tokens)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half of the summed differences of two laws (N,)."""
    return 0.5 * float((p - q).abs().sum())
