"""What a finished unit leaves behind in `units/NAME.json`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


def check_name(name: str) -> None:
    """Refuse what cannot name a unit or an artifact.

    Raises:
        FewstepError: other characters than letters, digits, `.`, `_`, `-`, `+` and `/`.
    """
    if not _NAME.fullmatch(name):
        raise FewstepError("unfit name of a unit or artifact", value=name, hint="Use letters, digits, . _ - and /.")


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record (unit, seconds, and value or artifact) with its digest."""
    write_json(file, {**record, "digest": _digest(record)}, over="all")


def read_record(file: Path) -> dict[str, Any]:
    """The record of a finished unit.

    Raises:
        FewstepError: it is none, or was changed since it was written.
    """
    found = read_json(file)
    seconds = found.get("seconds") if isinstance(found, dict) else None
    timed = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf
    if not timed or not ("value" in found or isinstance(found.get("artifact"), str)):
        what = f"{file} is no record of a unit"
    elif found.get("digest", _digest(found)) != _digest(found):  # records of older versions have none
        what = f"{file} was changed"
    else:
        return found
    raise FewstepError(what, hint="Remove this file: the unit is then computed again.")


def _digest(record: Mapping[str, Any]) -> str:
    """What tells a record from any other."""
    text = json.dumps({k: v for k, v in record.items() if k != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def events_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events of a log; a line that a kill cut short, or that is none of ours, is left out."""
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found


def plain_json(name: str, value: Any) -> Any:
    """The value as it will be read back, so that the first run and a resumed one see the same thing."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FewstepError(
            f"the result of unit {name!r} is not plain JSON: {error}", hint="Give save and load."
        ) from error
