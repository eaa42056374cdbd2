"""One error type for every mistake a user can make: what is wrong, the value found, and the hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FewstepError(ValueError):
    """A mistake the user can repair; the message names the thing, its value and the hint."""

    def __init__(self, what: str, *, value: object = None, hint: str = "") -> None:
        self.what, self.value, self.hint = what, value, hint
        found = "" if value is None else f" (found: {_short(value)})"
        message = f"{what}{found}.{' ' + hint if hint else ''}"
        super().__init__(message.encode(errors="backslashreplace").decode())  # a lone surrogate cannot be printed


class PlanError(FewstepError):
    """A plan is malformed, or cannot be built from what was given."""


class IdentityError(FewstepError):
    """A plan, or its coefficients, belong to another model, step count, quantization or guidance."""


class NonFiniteError(FewstepError):
    """The network produced NaN or infinity."""


class PluginError(FewstepError):
    """A part that another package brings cannot be used; the message names the package."""


class Stop(Exception):  # noqa: N818 - a signal, not an error
    """Ends a call that has done what it was started for, or may do no more, from inside it; may carry what it made."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Sentence that suggests the known name closest to `name`, or lists all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(names)}."


def _short(value: object, limit: int = 120) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeper, or of more digits, than Python prints
        text = f"a {type(value).__name__} too deep or too long to print"
    return text if len(text) <= limit else text[: limit - 1] + "…"
