"""What every recipe is: a frozen pydantic model without unknown keys, whose errors a person can act on."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from fewstep.errors import FewstepError, nearest


class RecipePart(BaseModel):
    """A section of a recipe. Subclass it for nested settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )


class Recipe(RecipePart):
    """Base of all recipes; `kind` chooses the class and what runs it (`fewstep.recipes.kinds`)."""

    kind: str
    about: str = ""
    """One sentence for people: what the run shows."""

    def resolved(self) -> Self:
        """The recipe with every `auto` replaced by what it means here; what a dry run shows."""
        return self

    def check(self) -> None:
        """Refuse what can be seen to be wrong before a model is opened; done before every run and by a dry run.

        Raises:
            FewstepError: a file that is not there, or numbers that do not fit one another.
        """

    def plain(self) -> dict[str, Any]:
        """The resolved recipe, defaults included, as values that YAML and JSON hold."""
        return self.model_dump(mode="json")


R = TypeVar("R", bound=RecipePart)


def validated(model: type[R], values: Mapping[str, Any]) -> R:
    """The recipe of these values.

    Raises:
        FewstepError: names the dotted key, the value found, and the nearest key or what is expected instead.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise _explained(model, error) from error


def _explained(model: type[BaseModel], error: ValidationError) -> FewstepError:
    found = error.errors(include_url=False, include_context=False)
    first, others = found[0], len(found) - 1
    where = first["loc"]
    key = ".".join(str(part) for part in where) or "the recipe"
    more = f" ({others} more {'error' if others == 1 else 'errors'} after this one.)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _keys(model, where[:-1])
        return FewstepError(
            f"unknown recipe key {key}", value=first["input"], hint=nearest(str(where[-1]), known) + more
        )
    if first["type"] == "missing":
        return FewstepError(f"recipe key {key} is missing", hint=f"Add it, or --set {key}=VALUE.{more}")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    quotes = " Put it in quotes if it is text." if first["type"] == "string_type" else ""
    return FewstepError(
        f"recipe key {key}: {message.rstrip('.')}",
        value=first["input"],
        hint=f"Change it in the file or with --set {key}=VALUE.{quotes}{more}",
    )


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names a section knows; follows nested models, optional ones and lists of them along `path`."""
    current: list[type[BaseModel]] = [model]
    for part in path:
        fields = [m.model_fields[part] for m in current if part in m.model_fields]
        following = [found for field in fields for found in _models(field.annotation)]
        current = following or current  # an index of a list, or the tag of a union, stays where it is
    return sorted({name for m in current for name in m.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        return [m for argument in typing.get_args(annotation) for m in _models(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
