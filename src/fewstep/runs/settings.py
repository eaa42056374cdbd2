"""What a run was told, and in what that differs from what it is told now."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import FewstepError


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with (old, new); an absent key counts as None."""
    flat = [_flat(old), _flat(new)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return {k: (flat[0].get(k), flat[1].get(k)) for k in keys if flat[0].get(k) != flat[1].get(k)}


def check_same(path: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a folder that was made by another recipe than this.

    Raises:
        FewstepError: it differs (the message says in what), or cannot be read.
    """
    old = _read_yaml(path / "recipe.yaml")
    changed = differences(old if isinstance(old, Mapping) else {}, json.loads(json.dumps(recipe, default=str)))
    if changed:
        listed = ", ".join(f"{key}: {a!r} -> {b!r}" for key, (a, b) in list(changed.items())[:8])
        raise FewstepError(
            f"{path} was made by another recipe; it differs in {listed}",
            mend="Give another folder with --out, or add --fresh to discard the old run.",
        )


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FewstepError(f"{file} cannot be read: {error}", mend="Use --fresh to begin anew.") from error


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    if isinstance(value, float) and math.isnan(value):
        value = "nan"
    return {prefix.removesuffix("."): value}
