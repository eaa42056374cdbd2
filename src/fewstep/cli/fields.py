"""Options of commands from the fields of their recipes: names, types, defaults, limits and descriptions.

A command names the fields that it offers, as dotted keys; what the recipe says of them is said nowhere else. The class
of the recipe is imported when the command is called, helped or completed, and not by `fewstep --help`.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fewstep.cli.known import beginning
from fewstep.cli.shell import finite, names

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Complete = Callable[[str], list[str]]
"""What a shell is told of the values that begin so."""


@dataclass(frozen=True, eq=False)
class RecipeFields:
    """Fields of a recipe as the arguments and options of a command.

    An option has the last word of its key; the whole key where another one has that word (`--train-steps`).

    Args:
        source: the kind of the recipe, or "module:name" of another class of settings.
        options: dotted keys, in the order of the help.
        arguments: keys of positional arguments, which must be given.
        named: key -> another name of the option.
        complete: key -> the names that a shell completes; a `Literal` completes by itself.
    """

    source: str
    options: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    complete: Mapping[str, Complete] = field(default_factory=dict)

    def command(self) -> type[TyperCommand]:
        """The class of a command that has them beside the options of its function; see `chosen`."""
        return type("FieldsCommand", (_FieldsCommand,), {"fields": self})

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """Name of the parameter -> dotted key."""
        last = [key.rpartition(".")[2] for key in (*self.arguments, *self.options)]
        found = {}
        for key, word in zip((*self.arguments, *self.options), last, strict=True):
            plain = word if last.count(word) == 1 or "." not in key else key.replace(".", "_")
            found[self.named.get(key, plain)] = key
        return found

    @functools.cached_property
    def parameters(self) -> list[Any]:
        """The parameters, as typer makes them."""

        def carrier(**values: Any) -> None: ...

        made = [self._parameter(name, key) for name, key in self.keys.items()]
        carrier.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
        carrier.__annotations__ = {parameter.name: parameter.annotation for parameter in made}
        app = typer.Typer(add_completion=False)
        app.command()(carrier)
        return list(typer.main.get_command(app).params)

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """By dotted key what was given; lists are written with commas."""
        found = {}
        for name, key in self.keys.items():
            value = given[name]
            if value is not None:
                found[key] = names(value) if _is_list(self._field(key)) else value
        return found

    def schema(self) -> Any:
        """The class of the recipe."""
        from fewstep.recipes import kinds

        return kinds.imported(self.source) if ":" in self.source else kinds.schema(self.source)

    def _field(self, key: str) -> FieldInfo:
        return _field(self.schema(), key)

    def _parameter(self, name: str, key: str) -> inspect.Parameter:
        info, place = self._field(key), inspect.Parameter.KEYWORD_ONLY
        kind, default = _plain_type(info), _default(info)
        known = _choices(info)
        limits = {"min": _limit(info, "ge"), "max": _limit(info, "le")} if kind in (int, float) else {}
        complete = self.complete.get(key) or ((lambda incomplete: beginning(incomplete, known)) if known else None)
        shared = {"help": _help(info), "autocompletion": complete, **limits}
        if key in self.arguments:
            asked: Any = typer.Argument(metavar=name.upper(), **shared)
            return inspect.Parameter(name, place, annotation=Annotated[kind, asked])
        flag = f"--{name.replace('_', '-')}"
        asked = typer.Option(
            flag,
            metavar="|".join(known) or None,
            show_default=default not in (None, "", False),
            callback=finite if kind is float else None,
            **shared,
        )
        return inspect.Parameter(name, place, default=default, annotation=Annotated[kind | None, asked])


class _FieldsCommand(TyperCommand):
    """A command that has parameters of a recipe before those of its function."""

    fields: RecipeFields

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters; those of the recipe are made when somebody asks."""
        own = super().get_params(ctx)
        arguments = [p for p in own if p.param_type_name == "argument"]
        return [*arguments, *self.fields.parameters, *(p for p in own if p not in arguments)]

    def invoke(self, ctx: Any) -> Any:
        """Run the function, which asks `chosen` for the fields."""
        given = {name: ctx.params.pop(name) for name in self.fields.keys}
        ctx.meta[__name__] = self.fields.values(given)
        return super().invoke(ctx)


def chosen(context: typer.Context) -> dict[str, Any]:
    """By dotted key what the command was given for the fields of its recipe, defaults included."""
    return dict(context.meta[__name__])


def _field(schema: Any, key: str) -> FieldInfo:
    """The field of a dotted key; where it has no description, with that of the class it was declared in first."""
    section, _, rest = key.partition(".")
    found = schema.model_fields[section]
    if rest:
        return _field(found.annotation, rest)
    if found.description is None:
        known = (getattr(base, "model_fields", {}).get(section) for base in schema.__mro__)
        described = next((info.description for info in known if info is not None and info.description), "")
        found = found.merge_field_infos(found, description=described)
    return typing.cast("FieldInfo", found)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a field takes, None left out."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return (annotation,)


def _is_list(info: FieldInfo) -> bool:
    return all(typing.get_origin(kind) is list for kind in _alternatives(info.annotation))


def _choices(info: FieldInfo) -> list[str]:
    """The values of a Literal, or of a list of them."""
    (kind, *others) = _alternatives(info.annotation)
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return [str(value) for value in typing.get_args(kind)] if typing.get_origin(kind) is Literal and not others else []


def _plain_type(info: FieldInfo) -> type:
    (kind, *others) = _alternatives(info.annotation)
    return kind if kind in (int, float, bool) and not others else str


def _default(info: FieldInfo) -> Any:
    value = None if info.is_required() else info.get_default(call_default_factory=True)
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _limit(info: FieldInfo, name: str) -> Any:
    return next((getattr(part, name) for part in info.metadata if hasattr(part, name)), None)


def _help(info: FieldInfo) -> str:
    """The description in one line, whose brackets are no markup."""
    text = " ".join((info.description or "").split())
    return (text + (" With commas." if _is_list(info) else "")).replace("[", r"\[")
