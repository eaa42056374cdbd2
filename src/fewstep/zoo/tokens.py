"""Small language models as standard transformers classes: masked ones, and autoregressive ones to compare with."""

from __future__ import annotations

from typing import Any

MASK = "[MASK]"


def train_bpe(text: str, vocabulary: int = 512) -> Any:
    """A byte-pair tokenizer of a text, with the mask as its last symbol.

    Characters that the text does not hold are unknown to it: there is no symbol for them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    lines = text.splitlines(keepends=True)
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocabulary - 1, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, mask_token=MASK, clean_up_tokenization_spaces=False)


def masked_language_model(symbols: int, width: int, layers: int, heads: int, length: int) -> Any:
    """A ModernBertForMaskedLM with attention over the whole length."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=symbols, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=length, global_attn_every_n_layers=1,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    return ModernBertForMaskedLM(config)


def causal_language_model(symbols: int, width: int, layers: int, heads: int, length: int) -> Any:
    """A LlamaForCausalLM of the same shape, which keeps what it has computed of the tokens before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=symbols, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=length + 1,
        pad_token_id=None, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
        attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)
