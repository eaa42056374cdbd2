"""What a tokenizer cuts off: words that a text encoder never reads."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any


def lost_words(tokenizer: Any, text: str, limit: int) -> str:
    """The end of the text that does not fit into `limit` tokens, special ones included; empty where all of it does."""
    ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(ids) <= limit:
        return ""
    if not getattr(tokenizer, "is_fast", False):
        return str(tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True))
    cut = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
    return text[max(end for _, end in cut["offset_mapping"]) :]


def warn_of_lost_words(lost: Mapping[str, str]) -> None:
    """One warning for all texts of which words are lost; `lost` maps each text to its words."""
    lost = {text: words for text, words in lost.items() if words}
    if not lost:
        return
    some = "; ".join(f"{words.strip()!r} of {text[:40]!r}..." for text, words in list(lost.items())[:3])
    more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
    what = "texts is longer" if len(lost) == 1 else "texts are longer"
    warnings.warn(f"{len(lost)} of the {what} than the text encoder reads; cut off: {some}{more}", stacklevel=4)


def warn_of_cut(tokenizer: Any, texts: Sequence[str], limit: int) -> None:
    """Warn once of the words of these texts that do not fit into `limit` tokens."""
    warn_of_lost_words({text: lost_words(tokenizer, text, limit) for text in dict.fromkeys(texts)})
