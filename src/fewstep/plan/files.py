"""Plan files: JSON a person can read, with tensor coefficients in a safetensors file beside it. Versioned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.files import check_free, read_json, read_tensors, user_path, write_json, write_tensors
from fewstep.plan import checks
from fewstep.plan.checks import MOST_ROWS
from fewstep.plan.combination import Coefficient

SCHEMA = 1
"""Version of the plan file; a reader refuses newer ones."""

MOST_BYTES = 8 * 2**20
"""Size of a plan file at most, tensors beside it not counted: the longest plan of single-step rows fits."""

Number = float | list[Any] | dict[str, str]
"""A coefficient in JSON: a number, a nested list (small tensors), or {"tensor": name in the safetensors file}."""


Index = Annotated[str, StringConstraints(pattern="^(0|[1-9][0-9]*)$", max_length=6)]
"""The number of a row as JSON writes it: one spelling, so that no two keys mean the same."""


class _Strict(BaseModel):
    # strict: text and truth values are no numbers
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class _Prediction(_Strict):
    kind: str
    sigma_data: float = 0.5
    sign: float = 1.0


class _Identity(_Strict):
    model: str | None = None
    quantization: str | None = None
    guidance: float | None = None


class RowEntry(_Strict):
    """One row of a file; numbers as they are written."""

    time: Number
    network_time: Number
    alpha: Number
    sigma: Number
    state: dict[Index, Number]
    output: dict[Index, Number]
    noise: Number = 0.0
    anchor: Number = 0.0
    offset: Number = 0.0
    input_scale: Number = 1.0
    network: str = "main"
    guidance: float | None = None
    hook: str | None = None
    sample_scale: Number = 1.0
    output_scale: Number = 1.0


class Document(_Strict):
    """A plan file."""

    fewstep_plan: int = Field(ge=1)
    steps: int = Field(ge=1)
    prediction: _Prediction
    prior_scale: Number = 1.0
    prior_offset: Number = 0.0
    rows: list[RowEntry]
    final_alpha: Number
    final_sigma: Number
    identity: _Identity = _Identity()
    origin: dict[str, Any] = {}


NUMBERS = (
    "time", "network_time", "alpha", "sigma", "noise", "anchor", "offset", "input_scale", "sample_scale",
    "output_scale",
)  # fmt: skip


def parsed(document: Any) -> Document:
    """A plan's JSON values, checked against the schema.

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
        found = Document.model_validate(document)
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


def write(path: str | Path, document: dict[str, Any], tensors: dict[str, Tensor], overwrite: bool = False) -> None:
    """Write the JSON file and, if any coefficient is a tensor, a safetensors file of the same stem; each atomic.

    overwrite: replace an earlier plan with its tensors; other files are never replaced (FewstepError).
    """
    check_free(path, overwrite)
    if tensors:  # first the tensors: a JSON without them would be a broken plan
        before = user_path(path)
        replaced = overwrite and before.exists() and _has_tensors(before)
        write_tensors(_tensor_file(path), tensors, over="all" if replaced else "ours" if overwrite else "nothing")
    write_json(path, document, over="ours" if overwrite else "nothing", most=MOST_BYTES)


def read(path: str | Path) -> tuple[Document, dict[str, Tensor] | None]:
    """A plan file, and its tensors if it has any.

    Raises:
        FewstepError: the file is absent, over `MOST_BYTES`, not JSON, or names a key twice.
        PlanError: it is JSON, but does not follow the schema.
    """
    found = parsed(read_json(path, most=MOST_BYTES, unique=True))
    has_tensors = any(isinstance(number, dict) for number in _numbers(found))
    return found, read_tensors(_tensor_file(path)) if has_tensors else None


def _has_tensors(path: Path) -> bool:
    """Whether a file is a plan with tensors beside it."""
    try:
        return any(isinstance(number, dict) for number in _numbers(parsed(read_json(path, most=MOST_BYTES))))
    except FewstepError:
        return False


def _tensor_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".safetensors")


def _numbers(document: Document) -> Iterator[Any]:
    """Every coefficient of a file."""
    for name in ("prior_scale", "prior_offset", "final_alpha", "final_sigma"):
        yield getattr(document, name)
    for row in document.rows:
        yield from (getattr(row, name) for name in NUMBERS)
        yield from row.state.values()
        yield from row.output.values()


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
