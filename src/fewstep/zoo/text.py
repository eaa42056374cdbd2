"""The small CLIP text side: a byte-level BPE tokenizer trained on captions, and text encoder configurations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.files import read_json, write_json
from fewstep.tokens import warn_of_cut

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Sequence[str], vocabulary: int = 1024, max_length: int = 24) -> Any:
    """A `CLIPTokenizer` whose merges come from the captions; every byte stays representable."""
    import json

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    model = json.loads(bpe.to_str())["model"]
    learned = [token for token in model["vocab"] if token not in alphabet]
    ends = [f"{letter}</w>" for letter in alphabet]
    tokens = list(dict.fromkeys([*alphabet, *ends, *learned, START, END]))
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=max_length,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def text_config(tokenizer: Any, width: int, layers: int, heads: int = 4) -> dict[str, Any]:
    """Keyword arguments of a `CLIPTextConfig` that fits the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def opens_in_float32(folder: str | Path) -> None:
    """Make transformers open this stored model in float32 unless told otherwise, as diffusers opens its own.

    Both store half precision; without it a pipeline opened without a dtype would mix the two.
    """
    file = Path(folder) / "config.json"
    write_json(file, {**read_json(file), "dtype": "float32"}, over="all")  # transformers wrote it a moment ago


def tokens_of(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Token ids (N, max_length) int64, padded and cut as the pipelines do it; warns of words that are cut."""
    warn_of_cut(tokenizer, captions, tokenizer.model_max_length)
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
