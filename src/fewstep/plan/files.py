"""Plan files: JSON a person can read, with tensor coefficients in a safetensors file beside it. Versioned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.files import check_free, read_json, read_tensors, user_path, write_json, write_tensors
from fewstep.plan import checks, schema
from fewstep.plan.checks import MOST_ROWS
from fewstep.plan.combination import Coefficient

SCHEMA = 1
"""Version of the plan file; a reader refuses newer ones."""

MOST_BYTES = 8 * 2**20
"""Size of a plan file at most, tensors beside it not counted: the longest plan of single-step rows fits."""


def parsed(document: Any, kind: type) -> BaseModel:
    """A plan's JSON values, checked against the fields of `kind`, which is `Plan`.

    Raises:
        PlanError: of a newer schema, an unknown or missing key, or a value of the wrong kind.
    """
    if not isinstance(document, Mapping) or "fewstep_plan" not in document:
        raise PlanError("not a plan: the key fewstep_plan is missing", hint="Write plans with Plan.save.")
    version = document["fewstep_plan"]
    if isinstance(version, int) and version > SCHEMA:
        raise PlanError("this plan is of a newer schema", value=version, hint="Update fewstep.")
    rows = document.get("rows")
    if isinstance(rows, list) and len(rows) > MOST_ROWS:  # before every one of them is found to be wrong
        raise PlanError(f"a plan has at most {MOST_ROWS} rows", value=len(rows), hint="Use fewer steps.")
    try:
        found: Any = schema.document(kind).model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"plan key {place}: {first['msg']}",
            value=first.get("input"),
            hint="Check the file against docs/plan-file.md.",
        ) from error
    if found.steps != len(found.rows):
        raise PlanError(
            f"the plan says {found.steps} steps but has {len(found.rows)} rows",
            hint="The file is truncated.",
        )
    return found


def written_number(tensors: dict[str, Tensor] | None, name: str, value: Coefficient) -> Any:
    """A coefficient as a JSON value; a tensor goes into `tensors` if given, else becomes a nested list."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.ndim == 0 or tensors is None:
        return value.detach().double().tolist()
    tensors[name] = value.detach().double().clone()  # rows may share one tensor, which a file may not
    return {"tensor": name}


def read_number(tensors: Mapping[str, Tensor] | None, value: Any) -> Coefficient:
    """The coefficient that `written_number` wrote (PlanError if it is none, or its tensor is missing)."""
    if isinstance(value, float | int):
        return float(value)
    if isinstance(value, dict):
        name = str(value.get("tensor"))
        if len(value) != 1 or tensors is None or name not in tensors:
            raise PlanError("a tensor coefficient is missing", value=value, hint="Keep the .safetensors file.")
        checks.coefficient(f"tensor {name}", tensors[name])
        return tensors[name].double()
    return _nested(value)


def write(
    path: str | Path, document: dict[str, Any], tensors: dict[str, Tensor], kind: type, overwrite: bool = False
) -> None:
    """Write the JSON file and, if any coefficient is a tensor, a safetensors file of the same stem; each atomic.

    overwrite: replace an earlier plan with its tensors; other files are never replaced (FewstepError).
    """
    check_free(path, overwrite)
    if tensors:  # first the tensors: a JSON without them would be a broken plan
        before = user_path(path)
        replaced = overwrite and before.exists() and _has_tensors(before, kind)
        write_tensors(_tensor_file(path), tensors, over="all" if replaced else "ours" if overwrite else "nothing")
    write_json(path, document, over="ours" if overwrite else "nothing", most=MOST_BYTES)


def read(path: str | Path, kind: type) -> tuple[BaseModel, dict[str, Tensor] | None]:
    """A plan file, and its tensors if it has any.

    Raises:
        FewstepError: the file is absent, over `MOST_BYTES`, not JSON, or names a key twice.
        PlanError: it is JSON, but does not follow the schema.
    """
    found = parsed(read_json(path, most=MOST_BYTES, unique=True), kind)
    return found, read_tensors(_tensor_file(path)) if _names_tensors(found, kind) else None


def _has_tensors(path: Path, kind: type) -> bool:
    """Whether a file is a plan with tensors beside it."""
    try:
        return _names_tensors(parsed(read_json(path, most=MOST_BYTES), kind), kind)
    except FewstepError:
        return False


def _names_tensors(found: BaseModel, kind: type) -> bool:
    return any(isinstance(number, dict) for number in schema.numbers(kind, found))


def _tensor_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".safetensors")


def _nested(value: list[Any]) -> Tensor:
    _refuse_leaves(value)
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PlanError("a coefficient is neither a number nor a nested list", value=value) from error


def _refuse_leaves(value: Any, depth: int = 0) -> None:
    """Refuse lists that are nested too deep, and leaves that torch would read as numbers and are none (PlanError)."""
    if not isinstance(value, list):
        checks.plain_number("an entry of a list", value)
    elif depth == checks.MOST_AXES:
        raise PlanError(f"a coefficient is nested deeper than {depth} lists", value=value)
    else:
        for entry in value:
            _refuse_leaves(entry, depth + 1)
