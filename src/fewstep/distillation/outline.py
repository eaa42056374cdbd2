"""A method written out: its parts as an indented list, each with only what differs from the part's defaults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fewstep.distillation.method import Method

INDENT = "  "


def outline(method: Method) -> str:
    """The method's parts, one line each where they are simple."""
    shown = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if _telling(f, method)}
    return "\n".join(_lines(shown, 0))


def _lines(parts: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in parts.items():
        inline = _inline(value)
        if inline is not None and len(inline) + len(name) + len(INDENT) * depth < 100:
            yield f"{INDENT * depth}{name}: {inline}"
            continue
        kind = f" {type(value).__name__}" if dataclasses.is_dataclass(value) else ""
        yield f"{INDENT * depth}{name}:{kind}"
        yield from _lines(_children(value), depth + 1)


def _children(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple):
        return {str(k + 1): one for k, one in enumerate(value)}
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if _telling(f, value)}


def _inline(value: Any) -> str | None:
    """A value in a line; None where it is too deep for one."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        inner = [_inline(one) for one in value]
        return None if None in inner else f"({', '.join(map(str, inner))})"
    if isinstance(value, Mapping):
        return None
    if dataclasses.is_dataclass(value):
        given = [(name, _inline(one)) for name, one in _children(value).items()]
        if any(one is None or "(" in one for _, one in given):
            return None
        return f"{type(value).__name__}({', '.join(f'{name}={one}' for name, one in given)})"
    return getattr(value, "__name__", None) if isinstance(value, Callable) else str(value)  # type: ignore[arg-type]


def _telling(field: dataclasses.Field[Any], owner: Any) -> bool:
    """Whether a field was given another value than its default."""
    value = getattr(owner, field.name)
    if field.default is not dataclasses.MISSING:
        return bool(value != field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value != field.default_factory())
    return not (inspect.isfunction(value) and value.__name__ == "<lambda>")
