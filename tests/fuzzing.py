"""Mutations of JSON documents and of files: what hand editing, half a download or malice make of them.

for change in mutations(document, 1000):
    refuses_cleanly(lambda: load(change))
"""

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from fewstep.errors import FewstepError

NESTED: list[Any] = []
for _ in range(70):
    NESTED = [NESTED]
WRONG = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.5, 1e-30, 1e30, 10**9, 2**63, 2**64, -(2**70), 10**400),
    *(math.nan, math.inf, -math.inf, "", "0", "00", "1:30", "nan", "true", "none", "\0", "\ud800", "é" * 500, "../x"),
    *([], {}, [[]], [None], [1.0, "a"], {"a": 1}, {"": {}}, NESTED),
)
"""Values of every type and size; one of them stands where another belongs."""


def mutations(document: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """`count` copies of a JSON document, each changed in one to three places; the same ones for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(document)
        for _ in range(chance.choice((1, 1, 2, 3))):
            changed = _change(changed, chance)
        yield changed


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of a file, each cut short, with bytes changed, removed or repeated."""
    chance = random.Random(seed)
    for _ in range(count):
        first, last = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        last = min(last, first + 64)
        noise = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        yield chance.choice(
            (
                data[:first],
                data[:first] + noise + data[first + len(noise) :],
                data[:first] + data[last:],
                data[:last] + data[first:],
            )
        )


def refuses_cleanly(load: Callable[[], Any]) -> Any:
    """What `load` gives, or None where it refuses with a `FewstepError`; every other exception fails the test."""
    try:
        return load()
    except FewstepError as error:
        str(error).encode("utf-8", "backslashreplace")
        return None


def _change(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return copy.deepcopy(chance.choice(WRONG))
    holder, key = chance.choice(places)
    action = chance.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[str(key) + chance.choice(("x", " ", "\0", "é"))] = holder.pop(key)
    elif action == 2:
        other, place = chance.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif action == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = chance.choice((-holder[key], holder[key] * 1000, holder[key] + 1, str(holder[key])))
    else:
        holder[key] = copy.deepcopy(chance.choice(WRONG))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])
