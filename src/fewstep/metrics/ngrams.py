"""A judge of text that needs no network: how surprised an n-gram model of characters is."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import FewstepError


@dataclass(frozen=True)
class NGrams:
    """Characters given those before, of all lengths up to an order, interpolated as Witten and Bell did (1991).

        p_k(c | context) = (count(context c) + kinds(context) p_{k-1}(c)) / (count(context) + kinds(context))

    Attributes:
        order: characters that a probability looks at, the last one among them.
        counts: context -> how often each character followed.
        alphabet: kinds of characters; others share one more.
    """

    order: int
    counts: dict[str, Counter[str]]
    alphabet: int

    def nats(self, text: str) -> float:
        """Mean -log p per character; the first ones are judged by what is there.

        Raises:
            FewstepError: an empty text.
        """
        if not text:
            raise FewstepError("an empty text has no surprise")
        total = 0.0
        for place, letter in enumerate(text):
            total -= math.log(self._probability(text[max(0, place - self.order + 1) : place], letter))
        return total / len(text)

    def _probability(self, context: str, letter: str) -> float:
        p = 1 / (self.alphabet + 1)
        for begin in range(len(context), -1, -1):
            found = self.counts.get(context[begin:])
            if found is None:
                break
            kinds = len(found)
            p = (found[letter] + kinds * p) / (found.total() + kinds)
        return p


def fit_ngrams(text: str, order: int = 6) -> NGrams:
    """Count all contexts of a text.

    Raises:
        FewstepError: an empty text or an order below one.
    """
    if not text or order < 1:
        raise FewstepError("n-grams need a text and an order of at least one", value=(len(text), order))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for place, letter in enumerate(text):
        for back in range(min(order, place + 1)):
            counts[text[place - back : place]][letter] += 1
    return NGrams(order, dict(counts), len(set(text)))


def distinct(texts: Sequence[str], words: int = 3) -> float:
    """Share of the sequences of so many words, in all texts together, that occur once: repetition lowers it."""
    grams = [tuple(s[i : i + words]) for s in (text.split() for text in texts) for i in range(len(s) - words + 1)]
    return len(set(grams)) / max(1, len(grams))


def unigram_entropy(rows: Sequence[Sequence[int]]) -> float:
    """Mean entropy, in nats, of how often tokens occur within a sample: low temperature and repetition lower it."""
    found = []
    for row in rows:
        shares = [count / len(row) for count in Counter(row).values()]
        found.append(-sum(share * math.log(share) for share in shares))
    return sum(found) / len(found)
