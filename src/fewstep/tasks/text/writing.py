"""Text by a plan of reveals: what was written, and when each token became known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.discrete import Order, RevealPlan, reveal_plan, sample_tokens
from fewstep.errors import FewstepError
from fewstep.tasks.text.models import TextModel

DOMINATES = 0.5
"""Part of what was written that the end of text may take before it is said."""


@dataclass(frozen=True, eq=False)
class Written:
    """Texts and how they came about.

    Attributes:
        texts: one per seed, the prompt and the ending in them.
        tokens: (B, L).
        pieces: text of each token.
        revealed: the row (from 1) after which each token stayed (B, L); 0 for what was given.
        plan: of reveals.
        ended: part of what was written that is the end of text.
    """

    texts: list[str]
    tokens: Tensor
    pieces: list[list[str]]
    revealed: Tensor
    plan: RevealPlan
    ended: float

    def warnings(self) -> list[str]:
        """What a reader must know."""
        if self.ended <= DOMINATES:
            return []
        return [
            f"the end of text takes {100 * self.ended:.0f} % of what was written: the model ends early, and reveals by "
            "confidence favour it. Ask for fewer tokens, or another order."
        ]


def write(
    model: TextModel,
    prompt: str = "",
    *,
    ending: str = "",
    tokens: int | None = None,
    steps: int = 16,
    order: Order = "independent",
    temperature: float = 1.0,
    remask: float = 0.0,
    plan: RevealPlan | None = None,
    seeds: Sequence[int] = (0,),
) -> Written:
    """Texts that begin with a prompt and end with an ending; what lies between is revealed by a plan.

    Args:
        model: a masked language model.
        prompt: what stands before.
        ending: what stands behind.
        tokens: to be written; all that the model has positions for unless given.
        steps: calls of the network.
        order: of reveals, as in `fewstep.discrete.Reveal`.
        temperature: of the tokens' law.
        remask: share of masking again.
        plan: instead of these four.
        seeds: one per text.

    Raises:
        FewstepError: unknown characters, more tokens than the model has positions for, or no seeds.
    """
    before, after = model.encoded(prompt), model.encoded(ending)
    room = model.positions - len(before) - len(after)
    if room < 1 or (tokens or 1) > room or not seeds:
        hint = f"The model has {model.positions} positions, {len(before) + len(after)} of them are given."
        raise FewstepError("the text does not fit the model", value=tokens or len(before) + len(after), hint=hint)
    made = plan or reveal_plan(model.process, steps, order=order, temperature=temperature, remask=remask)
    mask = model.process.mask
    start = torch.cat([before, torch.full((tokens or room,), mask), after])
    revealed, masked = torch.zeros(len(seeds), len(start), dtype=torch.long), start == mask

    def seen(row: int, z: Tensor) -> None:
        known = (z != mask) & masked
        revealed[known & (revealed == 0)] = row
        revealed[~known & masked] = 0  # masked again: it counts when it stays

    found = sample_tokens(made, model.denoiser(), seeds=seeds, prompt=start, callback=seen)
    end = model.tokenizer.eos_token_id
    ended = 0.0 if end is None else float((found[:, masked] == end).float().mean())
    pieces = [[model.tokenizer.decode([token]) for token in row] for row in found.tolist()]
    return Written(model.decoded(found), found, pieces, revealed, made, ended)
