"""From a name, a path or plain values to a valid recipe; every mistake on the way is a FewstepError."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, nearest
from fewstep.files import read_text, user_path
from fewstep.recipes import kinds
from fewstep.recipes.base import Recipe, validated
from fewstep.written import DEEPEST, LARGEST, Written, fitted, parse, read_value

SHIPPED = Path(__file__).parent
OF_VERBS = {"search": "schedule", "tune": "q-sched"}
"""Verbs and commands whose recipe has another name."""


def load(name: str | Path, overrides: Iterable[str] = (), chosen: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of that name or path with values and `a.b=value` overrides applied, in this order.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe ("q-sched", "recipes/q-sched.yaml").
        overrides: as people write them, such as `search.seed=1`.
        chosen: values by dotted key, as they are: nothing in them is read as YAML.

    Raises:
        FewstepError: no such recipe, not YAML, an unknown key, or a value out of range.
    """
    return resolve(parse(_text(locate(name))), overrides, chosen)


def resolve(values: Any, overrides: Iterable[str] = (), chosen: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of plain values (see `load`)."""
    if not isinstance(values, Mapping):
        raise FewstepError("a recipe is a mapping of keys to values", value=values, hint="Begin it with kind: NAME.")
    values = _plain(values)
    for key, value in (chosen or {}).items():
        values = _with(values, key, value)
    for text in overrides:
        values = override(values, text)
    if "kind" not in values:
        raise FewstepError("recipe key kind is missing", hint=f"Known kinds: {', '.join(kinds.known())}.")
    schema = kinds.schema(fitted(values["kind"], (str,)))
    return validated(schema, fitted(values, (schema,)))


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def locate(name: str | Path) -> Path:
    """The file of a recipe: the path itself, else the shipped recipe of that name (`recipes/` and `.yaml` optional)."""
    path = Path(name)
    try:
        if user_path(path).is_file():
            return user_path(path)
    except (OSError, FewstepError):
        pass  # a name that no file system takes
    known = shipped_recipes()
    asked = path.name.removesuffix(".yaml").removesuffix(".yml")
    asked = OF_VERBS.get(asked, asked)
    if path.parent.as_posix() in (".", "recipes") and asked in known:
        return known[asked]
    raise FewstepError(
        "no such recipe", value=str(name), hint=f"{nearest(asked, known)} A path to a YAML file works too."
    )


def override(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A copy of the values with `a.b=value` set; the value is read as YAML.

    Raises:
        FewstepError: no `=`, an empty key, or a key inside something that is not a section.
    """
    key, equals, written = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise FewstepError("an override is written key=value", value=text, hint="For instance --set search.seed=1.")
    return _with(values, key.strip(), read_value(written))


def _with(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the values with this one under a dotted key; sections that are absent are made."""
    *path, last = key.split(".")
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    section = changed
    for depth, part in enumerate(path):
        inner = section.setdefault(part, {})
        if inner is None or (isinstance(inner, Written) and inner.value is None):
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise FewstepError(
                f"recipe key {'.'.join(path[: depth + 1])} is no section",
                value=fitted(inner),
                hint=f"{key} cannot go inside.",
            )
        section = inner
    section[last] = _plain(value)
    return changed


def _text(path: Path) -> str:
    try:
        long = path.stat().st_size > 4 * LARGEST  # UTF-8 takes four bytes a character at most
        text = "" if long else read_text(path)
    except (OSError, FewstepError) as error:
        raise FewstepError(f"cannot read the recipe {path}: {error}", hint="It must be a UTF-8 text file.") from error
    if long:
        raise FewstepError(f"the recipe {path} is longer than {LARGEST} characters", hint="Is it another file?")
    return text


def _plain(value: Any, key: str = "", depth: int = 0) -> Any:
    """The value as a fresh tree of dict, list, str, `Written`, int, float, bool and None."""
    if depth > DEEPEST:
        raise FewstepError(f"the recipe is nested deeper than {DEEPEST} levels", hint="Flatten it.")
    if isinstance(value, Mapping):
        if strange := [k for k in value if not isinstance(k, str)]:
            raise FewstepError(
                f"a key in {key or 'the recipe'} is not text", value=strange[0], hint="Put it in quotes."
            )
        return {k: _plain(v, f"{key}.{k}".lstrip("."), depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}.{i}", depth + 1) for i, v in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float | Written):
        return value
    raise FewstepError(f"recipe key {key}: unfit kind of value", value=value, hint="Put it in quotes to make it text.")
