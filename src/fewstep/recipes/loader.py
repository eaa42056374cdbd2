"""From a name, a path or plain values to a valid recipe; every mistake on the way is a RecipeError."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import RecipeError, nearest
from fewstep.recipes import kinds
from fewstep.recipes.base import Recipe, validated

SHIPPED = Path(__file__).parent
LARGEST = 1_000_000
DEEPEST = 32


def load(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name or path with `a.b=value` overrides applied.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe ("q-sched", "recipes/q-sched.yaml").

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, or a value out of range.
    """
    return resolve(parse(_text(locate(name))), overrides)


def resolve(values: Any, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of plain values (see `load`)."""
    if not isinstance(values, Mapping):
        raise RecipeError("a recipe is a mapping of keys to values", value=values, mend="Begin it with kind: NAME.")
    values = _plain(values)
    for text in overrides:
        values = override(values, text)
    if "kind" not in values:
        raise RecipeError("recipe key kind is missing", mend=f"Known kinds: {', '.join(kinds.known())}.")
    return validated(kinds.find(values["kind"]).schema(), values)


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def locate(name: str | Path) -> Path:
    """The file of a recipe: the path itself, else the shipped recipe of that name (`recipes/` and `.yaml` optional)."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):
        pass  # a name that no file system takes
    known = shipped()
    asked = path.name.removesuffix(".yaml").removesuffix(".yml")
    if path.parent.as_posix() in (".", "recipes") and asked in known:
        return known[asked]
    raise RecipeError(
        "no such recipe", value=str(name), mend=f"{nearest(asked, known)} A path to a YAML file works too."
    )


def parse(text: str) -> Any:
    """YAML to plain values, strictly: no tags, no aliases, no key twice; 1e-4 is a number.

    Raises:
        RecipeError: not YAML, or one of the above.
    """
    if len(text) > LARGEST:
        raise RecipeError(f"the recipe is longer than {LARGEST} characters", mend="Is it another file?")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecipeError:
        raise
    except Exception as error:  # PyYAML raises ValueError, KeyError, RecursionError, ... for some malformed values
        raise RecipeError(f"the recipe is not YAML: {_one_line(error)}", mend="Mend that line.") from error


def override(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A copy of the values with `a.b=value` set; the value is read as YAML.

    Raises:
        RecipeError: no `=`, an empty key, or a key inside something that is not a section.
    """
    key, equals, written = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError("an override is written key=value", value=text, mend="For instance --set search.seed=1.")
    changed: dict[str, Any] = copy.deepcopy(dict(values))
    section = changed
    for depth, part in enumerate(parts[:-1]):
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"recipe key {'.'.join(parts[: depth + 1])} is no section",
                value=inner,
                mend=f"{text} cannot go inside.",
            )
        section = inner
    section[parts[-1]] = _plain(parse(written))
    return changed


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they can blow up) and duplicate keys (one would be lost)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise RecipeError("recipes take no YAML aliases", mend="Write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value is not None and str(key.value) in seen:
                raise RecipeError(f"recipe key {key.value} is given twice", mend="Keep one of them.")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}", mend="It must be a UTF-8 text file.") from error


def _plain(value: Any, key: str = "", depth: int = 0) -> Any:
    """The value as a fresh tree of dict, list, str, int, float, bool and None."""
    if depth > DEEPEST:
        raise RecipeError(f"the recipe is nested deeper than {DEEPEST} levels", mend="Flatten it.")
    if isinstance(value, Mapping):
        if strange := [k for k in value if not isinstance(k, str)]:
            raise RecipeError(f"a key in {key or 'the recipe'} is not text", value=strange[0], mend="Put it in quotes.")
        return {k: _plain(v, f"{key}.{k}".lstrip("."), depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}.{i}", depth + 1) for i, v in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RecipeError(f"recipe key {key}: unfit kind of value", value=value, mend="Put it in quotes to make it text.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
