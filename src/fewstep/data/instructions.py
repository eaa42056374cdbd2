"""Instructions on emoji: what a picture shows after an edit, by its caption."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
AGES = (("baby", "girl", "woman", "older woman"), ("baby", "boy", "man", "older man"),
        ("baby", "child", "person", "older adult"))  # fmt: skip
"""The captions of one person at four ages: a woman, a man, and a person of whom neither is said."""
YEARS = (1, 10, 35, 75)
"""About how old they are."""
HAIR = ("red hair", "curly hair", "white hair", "bald")
WHO = ("woman", "man", "person")

_TONE = re.compile(rf" with ({'|'.join(TONES)}) skin tone")
_PEOPLE = tuple(dict.fromkeys([*WHO, *(who for line in AGES for who in line)]))
_IT = "(?:it|her|him|them|the person)"

Rewrite = Callable[[str, str], list[str]]
"""(caption without its skin tone, what the instruction names) -> captions that the result may have."""


def _someone(head: str, who: str) -> list[str]:
    age = next((line.index(head) for line in AGES if head in line), None)
    if age is not None:  # a woman of the same age, else a grown one
        return [AGES[WHO.index(who)][age], who] if who in WHO else [who]
    if who not in WHO:
        return []
    first, _, rest = head.partition(" ")
    plain = rest if first in WHO else head
    return [f"{who} {plain}", f"{who} {head}", *([plain] if who == "person" else [])]


def _aged(head: str, way: str) -> list[str]:
    lines = [line for line in AGES if head in line]
    places = [(line, line.index(head) + (1 if way == "older" else -1)) for line in lines]
    return [line[place] for line, place in places if 0 <= place < len(line)][-1:]  # a baby becomes a child


def _haired(head: str, hair: str) -> list[str]:
    who = head.partition(" ")[0]
    plain = head in WHO or head in {f"{who} with {known}" for known in HAIR}
    return [f"{who} with {hair}"] if plain else []


RULES: tuple[tuple[re.Pattern[str], Rewrite], ...] = (
    (re.compile(rf"make (?:the|its|her|his|their) skin(?: tone)? ({'|'.join(TONES)})"), lambda head, _: [head]),
    (re.compile(rf"make {_IT} an? ({'|'.join(_PEOPLE)})"), _someone),
    (re.compile(rf"make {_IT} (older|younger)"), _aged),
    (re.compile(rf"(?:give {_IT} |make {_IT} )({'|'.join(HAIR)})"), _haired),
    (re.compile(r"remove the (.+)"), lambda head, it: [head.removesuffix(f" and {it}")] * head.endswith(f" and {it}")),
    (re.compile(r"add an? (.+)"), lambda head, it: [f"{head} and {it}"]),
    (re.compile(rf"turn {_IT} to the right"), lambda head, _: [f"{head} facing right"]),
)


def is_instruction(text: str) -> bool:
    """Whether a text asks for a change that captions tell: skin tone, person, age, hair, a thing, a direction."""
    return any(pattern.fullmatch(_plain(text)) for pattern, _ in RULES)


def edited_caption(caption: str, instruction: str, known: Collection[str]) -> str | None:
    """The caption of the edited picture; None where the instruction names nothing that can change in it.

    Args:
        caption: of the picture.
        instruction: such as "make the skin tone dark", "make it a woman", "make it older", "give it red hair",
            "remove the rocket", "add a rocket", "turn it to the right".
        known: captions that pictures have.
    """
    tones = _TONE.findall(caption)
    if len(tones) > 1:  # nobody says which of the two people
        return None
    head = _TONE.sub("", caption)
    for pattern, rewrite in RULES:
        found = pattern.fullmatch(_plain(instruction))
        if found is None:
            continue
        what = found.group(1) if pattern.groups else ""
        tone = f" with {what} skin tone" if pattern is RULES[0][0] else f" with {tones[0]} skin tone" if tones else ""
        wanted = [f"{new}{tone}" for new in rewrite(head, what)]
        return next((text for text in wanted if text in known and text != caption), None)
    return None


def aged_caption(caption: str, years: float, known: Collection[str]) -> tuple[int, str] | None:
    """How old the person of a caption is, and the caption of the same person at an age; None where it shows nobody.

    Args:
        caption: of the picture.
        years: the age that is wanted.
        known: captions that pictures have.
    """
    tone = "".join(f" with {tone} skin tone" for tone in _TONE.findall(caption))
    head = _TONE.sub("", caption)
    line = next((line for line in reversed(AGES) if head in line), None)
    if line is None:
        return None
    wanted = min(range(len(YEARS)), key=lambda k: abs(YEARS[k] - years))
    after = f"{line[wanted]}{tone}"
    return (YEARS[line.index(head)], after) if after in known else None


def instructions_for(caption: str, known: Collection[str]) -> dict[str, str]:
    """Every instruction that changes a picture of this caption into one of another known caption, and that caption."""
    asked = [f"make the skin tone {tone}" for tone in TONES]
    asked += [f"make it {'an' if who[0] == 'o' else 'a'} {who}" for who in _PEOPLE]
    asked += ["make it older", "make it younger", "turn it to the right"]
    asked += [f"give it {hair}" for hair in HAIR]
    head = _TONE.sub("", caption)
    asked += [f"remove the {head.rpartition(' and ')[2]}"] if " and " in head else []
    found = {text: edited_caption(caption, text, known) for text in asked}
    return {text: after for text, after in found.items() if after is not None}


def edit_pairs(captions: Sequence[str]) -> list[tuple[int, str, int]]:
    """(source, instruction, target) for every pair of pictures that an instruction leads from one to the other.

    captions: of the pictures, by number; of two with one caption the first counts.
    """
    places: dict[str, int] = {}
    for number, caption in enumerate(captions):
        places.setdefault(caption, number)
    return [
        (place, instruction, places[after])
        for caption, place in places.items()
        for instruction, after in instructions_for(caption, places).items()
    ]


def _plain(text: str) -> str:
    return " ".join(text.lower().strip().rstrip(".!").split())
