"""What a plan file may say: the fields of `Plan` and of the dataclasses in it, which are written there alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from fewstep.errors import FewstepError, PlanError
from fewstep.plan.combination import Coefficient

Number = float | list[Any] | dict[str, str]
"""A coefficient in JSON: a number, a nested list (small tensors), or {"tensor": name in the safetensors file}."""

Index = Annotated[str, StringConstraints(pattern="^(0|[1-9][0-9]*)$", max_length=6)]
"""The number of a row as JSON writes it: one spelling, so that no two keys mean the same."""

TABLE = Mapping[int, Coefficient]
"""The type of fields that hold coefficients by the number of a row."""

WRITTEN: dict[Any, Any] = {Coefficient: Number, TABLE: dict[Index, Number], Mapping[str, Any]: dict[str, Any]}
"""Type of a field -> its type in a file. A dataclass is an object, a tuple of them a list, all else what it is."""

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
"""No other keys; text and truth values are no numbers."""


@cache
def document(plan: type) -> type[BaseModel]:
    """The schema of a file: version, number of rows, and the fields of a plan."""
    head: dict[str, Any] = {"fewstep_plan": (int, Field(ge=1)), "steps": (int, Field(ge=1))}
    return create_model("Document", __config__=STRICT, **head, **_keys(plan))


def numbers(kind: type, found: Any) -> Iterator[Any]:
    """Every coefficient that a file gives for a dataclass, as it is written."""
    for name, field in _types(kind).items():
        value = getattr(found, name)
        if field == Coefficient:
            yield value
        elif field == TABLE:
            yield from value.values()
        elif get_origin(field) is tuple:
            for entry in value:
                yield from numbers(get_args(field)[0], entry)


def built(kind: type, found: Any, number: Callable[[Any], Coefficient]) -> Any:
    """The dataclass that a file gives; `number` reads a coefficient.

    Raises:
        PlanError: a value that the dataclass refuses.
    """

    def value(field: Any, written: Any) -> Any:
        if field == Coefficient:
            return number(written)
        if field == TABLE:
            return {int(j): number(c) for j, c in written.items()}
        if get_origin(field) is tuple:
            return tuple(built(get_args(field)[0], entry, number) for entry in written)
        return built(field, written, number) if hasattr(field, "__dataclass_fields__") else written

    values: dict[str, Any] = {}
    for name, field in _types(kind).items():
        try:
            values[name] = value(field, getattr(found, name))
        except PlanError:
            raise
        except FewstepError as error:
            raise PlanError(f"plan key {name}: {error}") from error
    return kind(**values)


@cache
def _entry(kind: type) -> Any:
    return create_model(kind.__name__, __config__=STRICT, **_keys(kind))


def _keys(kind: type) -> dict[str, Any]:
    """Key -> its type in a file, and its default."""
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        default = ... if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = Field(default_factory=field.default_factory)
        keys[field.name] = (_in_file(_types(kind)[field.name]), default)
    return keys


def _in_file(field: Any) -> Any:
    if get_origin(field) is tuple:
        return list[_entry(get_args(field)[0])]  # type: ignore[misc]
    return _entry(field) if hasattr(field, "__dataclass_fields__") else WRITTEN.get(field, field)


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
