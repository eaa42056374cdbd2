"""Masked language models of transformers as token denoisers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.discrete import MaskedDiffusion, TokenDenoiser
from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.zoo import SHIPPED, shipped


@dataclass(frozen=True, eq=False)
class TextModel:
    """A masked language model with its tokenizer.

    Attributes:
        network: tokens (B, L) -> an output with `logits` (B, L, V), as AutoModelForMaskedLM opens it.
        tokenizer: with a mask token.
        name: what was asked for.
    """

    network: Any
    tokenizer: Any
    name: str = ""

    @property
    def process(self) -> MaskedDiffusion:
        """Of its tokens."""
        return MaskedDiffusion(int(self.network.config.vocab_size), int(self.tokenizer.mask_token_id))

    @property
    def positions(self) -> int:
        """Tokens that it was made for."""
        return int(self.network.config.max_position_embeddings)

    def denoiser(self) -> TokenDenoiser:
        """The contract of plans; symbols of no text (start, separator, padding, unknown) are never written."""
        return TokenDenoiser(token_logits(self.network, self.never()), self.process)

    def never(self) -> list[int]:
        """Symbols besides the mask that are never written; an end of text is."""
        ids = set(self.tokenizer.all_special_ids) - {self.tokenizer.mask_token_id, self.tokenizer.eos_token_id}
        beyond = range(len(self.tokenizer), int(self.network.config.vocab_size))
        return sorted({int(i) for i in ids} | set(beyond))

    def encoded(self, text: str) -> Tensor:
        """Tokens (n,) of a text, without anything before or after.

        Raises:
            FewstepError: characters that the tokenizer does not know.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        back, unknown = self.tokenizer.decode(ids), self.tokenizer.unk_token_id
        lost = sorted(set(text) - set(back) - {" ", "\n"}) if unknown is None or unknown in ids else []
        if lost:
            hint = "The model never saw them: write others."
            raise FewstepError("unknown characters in the text", value="".join(lost), hint=hint)
        return torch.tensor(ids, dtype=torch.long)

    def decoded(self, tokens: Tensor) -> list[str]:
        """Text of tokens (B, L)."""
        return [self.tokenizer.decode(row) for row in tokens.tolist()]


def token_logits(network: Any, never: list[int] | None = None):  # type: ignore[no-untyped-def]
    """A network of transformers as plain logits, without the symbols `never`."""

    def logits(z: Tensor) -> Tensor:
        found: Tensor = network(input_ids=z).logits
        if not never:
            return found
        return found.index_fill(2, torch.tensor(never, device=found.device), -torch.inf)

    return logits


def open_text_model(name: str | Path) -> TextModel:
    """A masked language model: a shipped name, a folder of transformers, or a hub id.

    Raises:
        FewstepError: nothing there, no masked language model, or a tokenizer without a mask.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    place = shipped(str(name)) if str(name) in SHIPPED else user_path(name)
    try:
        network = AutoModelForMaskedLM.from_pretrained(place, dtype=torch.float32, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        hint = "Give a shipped name, a folder or a hub id of a model with a mask, in safetensors."
        raise FewstepError(f"no masked language model can be opened: {error}", value=str(name), hint=hint) from error
    if tokenizer.mask_token_id is None:
        raise FewstepError("this tokenizer has no mask", value=str(name), hint="Give a masked language model.")
    return TextModel(network.eval().requires_grad_(False), tokenizer, str(name))
