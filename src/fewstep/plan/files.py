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
from fewstep.plan.plan import Identity, Plan, Row
from fewstep.prediction import Prediction

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


class _Row(_Strict):
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


class _Document(_Strict):
    fewstep_plan: int = Field(ge=1)
    steps: int = Field(ge=1)
    prediction: _Prediction
    prior_scale: Number = 1.0
    prior_offset: Number = 0.0
    rows: list[_Row]
    final_alpha: Number
    final_sigma: Number
    identity: _Identity = _Identity()
    origin: dict[str, Any] = {}


_NUMBERS = (
    "time", "network_time", "alpha", "sigma", "noise", "anchor", "offset", "input_scale", "sample_scale",
    "output_scale",
)  # fmt: skip


def to_document(plan: Plan, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """The plan as JSON values; tensor coefficients go into `tensors` if given, else become nested lists."""

    def number(name: str, value: Coefficient) -> Any:
        if not isinstance(value, Tensor):
            return float(value)
        if value.ndim == 0 or tensors is None:
            return value.detach().double().tolist()
        tensors[name] = value.detach().double().clone()  # rows may share one tensor, which a file may not
        return {"tensor": name}

    rows = []
    for k, row in enumerate(plan.rows):
        entry: dict[str, Any] = {"state": {}, "output": {}}
        for name, value in row.coefficients():
            kind, _, j = name.partition(".")
            (entry[kind] if j else entry).__setitem__(j or kind, number(f"rows.{k}.{name}", value))
        rows.append(entry | {"network": row.network, "guidance": row.guidance, "hook": row.hook})
    return {
        "fewstep_plan": SCHEMA,
        "steps": plan.steps,
        "prediction": vars(plan.prediction),
        "prior_scale": number("prior_scale", plan.prior_scale),
        "prior_offset": number("prior_offset", plan.prior_offset),
        "rows": rows,
        "final_alpha": number("final_alpha", plan.final_alpha),
        "final_sigma": number("final_sigma", plan.final_sigma),
        "identity": vars(plan.identity),
        "origin": dict(plan.origin),
    }


def from_document(document: Any, tensors: Mapping[str, Tensor] | None = None) -> Plan:
    """A plan from JSON values.

    Raises:
        PlanError: of a newer schema, an unknown or missing key, a value of the wrong kind, or an invalid plan.
    """
    return _plan(_parsed(document), tensors)


def _parsed(document: Any) -> _Document:
    if not isinstance(document, Mapping) or "fewstep_plan" not in document:
        raise PlanError("not a plan: the key fewstep_plan is missing", hint="Write plans with Plan.save.")
    version = document["fewstep_plan"]
    if isinstance(version, int) and version > SCHEMA:
        raise PlanError("this plan is of a newer schema", value=version, hint="Update fewstep.")
    rows = document.get("rows")
    if isinstance(rows, list) and len(rows) > MOST_ROWS:  # before every one of them is found to be wrong
        raise PlanError(f"a plan has at most {MOST_ROWS} rows", value=len(rows), hint="Use fewer steps.")
    try:
        parsed = _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"plan key {place}: {first['msg']}",
            value=first.get("input"),
            hint="Check the file against docs/plan-file.md.",
        ) from error
    if parsed.steps != len(parsed.rows):
        raise PlanError(
            f"the plan says {parsed.steps} steps but has {len(parsed.rows)} rows",
            hint="The file is truncated.",
        )
    return parsed


def _plan(parsed: _Document, tensors: Mapping[str, Tensor] | None) -> Plan:
    def number(value: Any) -> Coefficient:
        if isinstance(value, float | int):
            return float(value)
        if isinstance(value, dict):
            name = str(value.get("tensor"))
            if len(value) != 1 or tensors is None or name not in tensors:
                raise PlanError("a tensor coefficient is missing", value=value, hint="Keep the .safetensors file.")
            checks.coefficient(f"tensor {name}", tensors[name])
            return tensors[name].double()
        return _nested(value)

    try:
        prediction = Prediction(**parsed.prediction.model_dump())
    except FewstepError as error:
        raise PlanError(f"plan key prediction: {error}") from error
    return Plan(
        rows=tuple(_row(row, number) for row in parsed.rows),
        prediction=prediction,
        final_alpha=number(parsed.final_alpha),
        final_sigma=number(parsed.final_sigma),
        prior_scale=number(parsed.prior_scale),
        prior_offset=number(parsed.prior_offset),
        origin=parsed.origin,
        identity=Identity(**parsed.identity.model_dump()),
    )


def save(plan: Plan, path: str | Path, overwrite: bool = False) -> None:
    """Write the JSON file and, if any coefficient is a tensor, a safetensors file of the same stem; each atomic.

    overwrite: replace an earlier plan with its tensors; other files are never replaced (FewstepError).
    """
    tensors: dict[str, Tensor] = {}
    document = to_document(plan, tensors)
    check_free(path, overwrite)
    if tensors:  # first the tensors: a JSON without them would be a broken plan
        before = user_path(path)
        replaced = overwrite and before.exists() and _has_tensors(before)
        write_tensors(_tensor_file(path), tensors, over="all" if replaced else "ours" if overwrite else "nothing")
    write_json(path, document, over="ours" if overwrite else "nothing", most=MOST_BYTES)


def load(path: str | Path) -> Plan:
    """Read a plan file.

    Raises:
        FewstepError: the file is absent, over `MOST_BYTES`, not JSON, or names a key twice.
        PlanError: it is JSON, but not a valid plan.
    """
    parsed = _parsed(read_json(path, most=MOST_BYTES, unique=True))
    has_tensors = any(isinstance(number, dict) for number in _numbers(parsed))
    return _plan(parsed, read_tensors(_tensor_file(path)) if has_tensors else None)


def _has_tensors(path: Path) -> bool:
    """Whether a file is a plan with tensors beside it."""
    try:
        return any(isinstance(number, dict) for number in _numbers(_parsed(read_json(path, most=MOST_BYTES))))
    except FewstepError:
        return False


def _tensor_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".safetensors")


def _numbers(parsed: _Document) -> Iterator[Any]:
    """Every coefficient of a file."""
    for name in ("prior_scale", "prior_offset", "final_alpha", "final_sigma"):
        yield getattr(parsed, name)
    for row in parsed.rows:
        yield from (getattr(row, name) for name in _NUMBERS)
        yield from row.state.values()
        yield from row.output.values()


def _row(row: _Row, number: Any) -> Row:
    tables: dict[str, Any] = {
        kind: {int(j): number(c) for j, c in getattr(row, kind).items()} for kind in ("state", "output")
    }
    plain: dict[str, Any] = {name: number(getattr(row, name)) for name in _NUMBERS}
    return Row(**plain, **tables, network=row.network, guidance=row.guidance, hook=row.hook)


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
