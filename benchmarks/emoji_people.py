"""Emoji of one person alone at four ages: the edits between them, and what a CLIP reads in the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.clip import Clip
from fewstep.data.emoji import emoji_prompts, load_emoji
from fewstep.data.instructions import AGES, TONES, YEARS, aged_caption

HELD, WORST = ("medium", "dark"), 74.0
"""Skin tones that nothing is trained on, and the largest error of an age."""
PEOPLE = tuple(dict.fromkeys(who for line in AGES for who in line))


@dataclass(frozen=True, eq=False)
class Edits:
    """Sources and what they are to become: pictures (N, 3, 64, 64) in [0, 1], captions, ages in years."""

    sources: Tensor
    truths: Tensor
    before: list[str]
    after: list[str]
    now: Tensor
    wanted: Tensor

    def rows(self, rows: Sequence[int]) -> Edits:
        """These edits alone."""

        def some(words: list[str]) -> list[str]:
            return [words[i] for i in rows]

        index = torch.tensor(list(rows), dtype=torch.long)
        return Edits(self.sources[index], self.truths[index], some(self.before), some(self.after), self.now[index],
                     self.wanted[index])  # fmt: skip


def all_edits(held: bool) -> Edits:
    """Every person at every other age; those of the held-out skin tones, or the others."""
    images, captions = load_emoji("all")
    places = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    tones = ["", *(f" with {tone} skin tone" for tone in TONES)]
    chosen = [tone for tone in tones if any(f" with {h} skin" in tone for h in HELD) == held]
    found = []
    for person in (f"{who}{tone}" for who in PEOPLE for tone in chosen):
        if person in places:
            ages = [(years, aged_caption(person, years, places)) for years in YEARS]
            found += [(person, years, *said) for years, said in ages if said is not None and said[1] != person]
    before, years, now, after = (list(column) for column in zip(*found, strict=True))
    pictures = images.float() / 255
    return Edits(
        pictures[[places[c] for c in before]], pictures[[places[c] for c in after]], before, after,
        torch.tensor(now, dtype=torch.float32), torch.tensor(years, dtype=torch.float32),
    )  # fmt: skip


def people() -> list[tuple[str, int, str, str]]:
    """Every caption of a person: number of the age, skin tone, and sex where it is said."""
    known, found = set(emoji_prompts("all")), dict[str, tuple[str, int, str, str]]()
    for s, line in enumerate(AGES):
        for k, who in enumerate(line):
            for tone in ("", *TONES):
                caption = f"{who} with {tone} skin tone" if tone else who
                if caption in known:
                    found.setdefault(caption, (caption, k, tone, "" if k == 0 else "wmp"[s]))
    return list(found.values())


class Reading:
    """What a CLIP reads in pictures of people: the age, and who it is (skin tone and sex)."""

    def __init__(self, clip: Clip) -> None:
        self.clip, self.people = clip, people()
        self.texts = clip.text_features([caption for caption, *_ in self.people])
        self.ages = torch.tensor([k for _, k, *_ in self.people])
        who = [(tone, sex) for *_, tone, sex in self.people]
        self.kinds = list(dict.fromkeys(pair for pair in who if pair[1]))
        self.who = torch.tensor([[not sex or (tone, sex) == kind for tone, sex in who] for kind in self.kinds])
        self.of = {caption: (tone, sex) for caption, _, tone, sex in self.people}

    def logits(self, pictures: Tensor) -> Tensor:
        """Of every person (B, P)."""
        return self.clip.model.logit_scale.exp() * self.clip.image_features(pictures) @ self.texts.T

    def ages_of(self, pictures: Tensor) -> Tensor:
        """Log probabilities of the four ages (B, 4)."""
        logits = self.logits(pictures)
        each = [logits[:, self.ages == k].logsumexp(1) for k in range(len(YEARS))]
        return torch.stack(each, 1).log_softmax(1)

    def who_of(self, pictures: Tensor) -> Tensor:
        """Log probabilities of skin tone and sex (B, K); of a baby the sex is not seen."""
        logits = self.logits(pictures)
        each = [logits[:, mask].logsumexp(1) for mask in self.who]
        return torch.stack(each, 1).log_softmax(1)

    @torch.no_grad()
    def measures(self, found: Tensor, edits: Edits) -> dict[str, float]:
        """Error of the age in years, share of kept tone and sex, their harmonic score, distance from the truth."""
        best = self.logits(found).argmax(1).tolist()
        error = (torch.tensor([float(YEARS[self.people[b][1]]) for b in best]) - edits.wanted).abs()
        kept = []
        for b, before in zip(best, edits.before, strict=True):
            (_, _, tone, sex), (own, known) = self.people[b], self.of[before]
            kept.append(0.5 * (tone == own) + 0.5 * (sex == known or not sex or not known))
        same, off = sum(kept) / len(kept), float(error.mean())
        right = max(1 - off / WORST, 0.0)
        return {"age error": off, "identity": same, "score": 2 * right * same / max(right + same, 1e-9),
                "truth": float((found - edits.truths).square().mean().sqrt())}  # fmt: skip
