"""Parts of a method: functions that remember what they were made from.

    @part
    def uniform_times(low: float = 0.02, high: float = 0.98) -> TimeDistribution:
        def draw(size, process, generator, samples=None): ...
        return draw

A part is called with its parameters and gives the function that the training calls. What it gives can be printed,
compared, copied and pickled, because it knows the part's name and its arguments.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
F = TypeVar("F")


class Part:
    """A function with the name and the arguments that it was made from.

    The arguments can be read as attributes, and so can what the function itself states (`needs` of a weight).

    Args:
        make: decorated by `part`.
        arguments: all of `make`'s, by name.
    """

    def __init__(self, make: Any, arguments: Mapping[str, Any]) -> None:
        self.make = make
        self.arguments = dict(arguments)
        self.function = make.__wrapped__(**arguments)

    @property
    def name(self) -> str:
        """The part's."""
        return str(self.make.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the function."""
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        return self.arguments[name] if name in self.arguments else getattr(self.function, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and (self.make, self.arguments) == (other.make, other.arguments)

    def __hash__(self) -> int:
        return hash(self.make)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={_shown(value)}' for name, value in self.arguments.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self.make, self.arguments)


def _shown(value: Any) -> str:
    """A value in text that is the same in every process where it can be: functions of a module by their names.

    A function made inside of another one may hide parameters: its address tells it from others.
    """
    if (inspect.isroutine(value) or inspect.isclass(value)) and "<" not in value.__qualname__:
        return str(value.__name__)
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def part(make: Callable[P, F]) -> Callable[P, F]:
    """Decorator of a function that makes a function: the result knows its name and arguments.

    Args:
        make: (parameters) -> a function, or an object that states facts about one. It refuses bad parameters itself.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> F:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return cast(F, Part(made, given.arguments))

    return made


def made_by(value: Any, make: Callable[..., Any]) -> bool:
    """Whether a value is what this part made."""
    return isinstance(value, Part) and value.make is make


def replaced(given: F, **changes: Any) -> F:
    """The same part with other arguments.

    Args:
        given: what a part made.
        changes: arguments by name.
    """
    known = cast(Part, given)
    return cast(F, known.make(**{**known.arguments, **changes}))
