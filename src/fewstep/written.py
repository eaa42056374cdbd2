"""Values as people write them: the plain part of YAML 1.2, and what a setting makes of a number that may be a path.

YAML 1.1, which PyYAML reads, takes `1:30` for 90, `010` for 8, `no` for false and `2001-01-01` for a date. Here they
are 1:30, 10, no and 2001-01-01. A number keeps the text it was written as, for settings that take text: a folder may
be called 2024.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fewstep.errors import FewstepError

LARGEST = 200_000
"""Characters of a text that is read."""
DEEPEST = 32
"""Levels of sections and lists."""

_WHOLE = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, float | bool | None] = {
    "": None, "~": None, "null": None, "true": True, "false": False,
    ".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"),
}  # fmt: skip
_SPELLINGS = {form: value for word, value in _WORDS.items() for form in (word, word.title(), word.upper())}


@dataclass(frozen=True)
class Written:
    """A number, a truth value or nothing, with its text."""

    value: float | bool | None
    text: str


def parse(text: str) -> Any:
    """YAML to dict, list, str and `Written`, strictly: no tags, no aliases, no key twice, one document.

    Raises:
        FewstepError: not YAML, one of the above, or larger than `LARGEST` or deeper than `DEEPEST`.
    """
    if len(text) > LARGEST:
        raise FewstepError(f"the recipe is longer than {LARGEST} characters", hint="Is it another file?")
    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        next(events)  # the stream begins
        if not isinstance(next(events), yaml.DocumentStartEvent):
            return None
        found = _built(events, next(events), 0)
        next(events)  # the document ends
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise FewstepError("the recipe holds several YAML documents", hint="Keep one of them.")
        return found
    except FewstepError:
        raise
    except Exception as error:  # PyYAML raises several kinds for malformed text
        shown = " ".join(str(error).split())[:300] or type(error).__name__
        raise FewstepError(f"the recipe is not YAML: {shown}", hint="Mend that line.") from error


def read_value(text: str) -> Any:
    """The value behind `key=`: lists, sections and quoted text as YAML, everything else as it stands.

    A `#` begins no comment and a `:` no section: `models/v1 #2` is a path.

    Raises:
        FewstepError: see `parse`.
    """
    text = text.strip()
    return parse(text) if text.startswith(("[", "{", "'", '"')) else _scalar(text)


def fitted(value: Any, annotations: Sequence[Any] = (Any,)) -> Any:
    """The value without `Written`: as text where one of the annotations takes text and none a number, else plain.

    Follows sections (pydantic models, mappings) and lists. The words null, true and false stay what they are.
    """
    options = [option for annotation in annotations for option in _options(annotation)]
    if isinstance(value, Written):
        empty = value.text == "" and types.NoneType not in options
        as_text = empty or not (value.value is None or isinstance(value.value, bool))
        return value.text if as_text and _only_text(options) else value.value
    if isinstance(value, Mapping):
        return {key: fitted(inner, _inside(options, key)) for key, inner in value.items()}
    if isinstance(value, list):
        inside = [a for option in options if typing.get_origin(option) is not dict for a in typing.get_args(option)]
        return [fitted(inner, inside or (Any,)) for inner in value]
    return value


def _built(events: Iterator[Any], event: Any, depth: int) -> Any:
    """The value that begins with this event."""
    if isinstance(event, yaml.AliasEvent):
        raise FewstepError("recipes take no YAML aliases", hint="Write the value out.")
    if event.tag is not None:
        raise FewstepError(
            f"the recipe is not YAML of the plain kind: it has the tag {event.tag}", hint="Leave it out."
        )
    if depth > DEEPEST:
        raise FewstepError(f"the recipe is nested deeper than {DEEPEST} levels", hint="Flatten it.")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_built(events, event, depth + 1))
        return items
    section: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _built(events, event, depth + 1)
        if not isinstance(key, str):
            shown = key.text if isinstance(key, Written) else key
            raise FewstepError("a key of the recipe is not text", value=shown, hint="Put it in quotes.")
        if key in section:
            raise FewstepError(f"recipe key {key} is given twice", hint="Keep one of them.")
        section[key] = _built(events, next(events), depth + 1)
    return section


def _scalar(text: str) -> Any:
    """A word without quotes."""
    if text in _SPELLINGS:
        return Written(_SPELLINGS[text], text)
    try:
        if _WHOLE.fullmatch(text):
            return Written(int(text), text)
    except ValueError as error:  # Python reads no integers of more than 4300 digits
        raise FewstepError("a number of the recipe is too long", value=text, hint="Put it in quotes.") from error
    return Written(float(text), text) if _DECIMAL.fullmatch(text) else text


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a union, without what `Annotated` adds."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for argument in typing.get_args(annotation) for option in _options(argument)]
    return [annotation]


def _only_text(options: Sequence[Any]) -> bool:
    literals = [v for option in options if typing.get_origin(option) is typing.Literal for v in typing.get_args(option)]
    takes = {option for option in options if option in (str, int, float, bool, Any)} | {type(v) for v in literals}
    return takes == {str}


def _inside(options: Sequence[Any], key: str) -> list[Any]:
    """Annotations of what lies under a key."""
    fields = [getattr(option, "model_fields", {}) for option in options]
    found = [field[key].annotation for field in fields if key in field]
    found += [typing.get_args(option)[1] for option in options if typing.get_origin(option) in (dict, Mapping)]
    return found or [Any]
