"""What a run was told, and in what that differs from what it is told now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import FewstepError
from fewstep.files import read_text

LARGEST = 1_000_000
"""Characters of a recipe."""
DEEPEST = 100
"""Levels of sections and lists."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with (old, new); an absent key counts as None, as an empty section."""
    flat = [dict(_flat(old)), dict(_flat(new))]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return {k: (flat[0].get(k), flat[1].get(k)) for k in keys if flat[0].get(k) != flat[1].get(k)}


def check_same(path: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a folder that was made by another recipe than this (plain values).

    Raises:
        FewstepError: it differs (the message says in what), or cannot be read.
    """
    file = path / "recipe.yaml"
    hint = "Use --fresh to begin anew."
    text = read_text(file)
    try:
        _check_plain(text)
        old = yaml.load(text, Loader=_LOADER)
        changed = differences(old if isinstance(old, Mapping) else {}, recipe)
    except Exception as error:  # PyYAML raises ValueError, KeyError, RecursionError, ... for some malformed values
        why = " ".join(str(error).split())[:300]
        raise FewstepError(f"{file} cannot be read: {why}", hint=hint) from error
    if changed:
        listed = ", ".join(f"{key}: {a!r} -> {b!r}" for key, (a, b) in list(changed.items())[:8])
        raise FewstepError(
            f"{path} was made by another recipe; it differs in {listed[:1000]}",
            hint="Give another folder with --out, or add --fresh to discard the old run.",
        )


def _check_plain(text: str) -> None:
    """Refuse what no run wrote: aliases, which can stand for any length, and what takes long to read (ValueError)."""
    depth = 0
    if len(text) > LARGEST:
        raise ValueError("too long")
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
            raise ValueError("too deep, or with aliases")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}.")
    else:
        nan = isinstance(value, float) and math.isnan(value)
        yield prefix.removesuffix("."), "nan" if nan else value
