"""A method written out: its parts as an indented list, each with only what differs from the part's defaults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fewstep.distillation.method import Method
from fewstep.distillation.part import Part

INDENT = "  "


def outline(method: Method) -> str:
    """The method's parts, one line each where they are simple."""
    return "\n".join(_lines(_children(method), 0))


def _lines(parts: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in parts.items():
        inline = _inline(value)
        if inline is not None and len(inline) + len(name) + len(INDENT) * depth < 100:
            yield f"{INDENT * depth}{name}: {inline}"
            continue
        kind = f" {_kind(value)}" if _kind(value) else ""
        yield f"{INDENT * depth}{name}:{kind}"
        yield from _lines(_children(value), depth + 1)


def _kind(value: Any) -> str:
    """The name of a part or of a dataclass; empty for other values."""
    if isinstance(value, Part):
        return value.name
    return type(value).__name__ if dataclasses.is_dataclass(value) else ""


def _children(value: Any) -> Mapping[str, Any]:
    """What is inside of a value by name; of parts and dataclasses, what differs from the defaults."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple):
        return {str(k + 1): one for k, one in enumerate(value)}
    if isinstance(value, Part):
        given = inspect.signature(value.make).parameters.values()
        return {p.name: value.arguments[p.name] for p in given if _telling(value.arguments[p.name], p.default, p.empty)}
    found = {}
    for f in dataclasses.fields(value):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if _telling(getattr(value, f.name), default, dataclasses.MISSING):
            found[f.name] = getattr(value, f.name)
    return found


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
    if _kind(value):
        given = [(name, _inline(one)) for name, one in _children(value).items()]
        if any(one is None or "(" in one for _, one in given):
            return None
        return f"{_kind(value)}({', '.join(f'{name}={one}' for name, one in given)})"
    return getattr(value, "__name__", None) if isinstance(value, Callable) else str(value)  # type: ignore[arg-type]


def _telling(value: Any, default: Any, absent: Any) -> bool:
    """Whether a value was given that differs from its default; a function without a name tells nothing."""
    if default is absent:
        return not (inspect.isfunction(value) and value.__name__ == "<lambda>")
    return bool(value != default)
