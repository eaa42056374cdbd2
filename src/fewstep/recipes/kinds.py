"""Which class reads a recipe of a kind and which function runs it; both are imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fewstep.errors import FewstepError, nearest
from fewstep.recipes.base import Recipe

_KINDS: dict[str, tuple[str, str]] = {
    "align": ("fewstep.jobs.align:AlignRecipe", "fewstep.jobs.align:run"),
    "auto": ("fewstep.jobs.auto:AutoRecipe", "fewstep.jobs.auto:run"),
    "distill": ("fewstep.jobs.distill:DistillRecipe", "fewstep.jobs.distill:run"),
    "q-sched": ("fewstep.jobs.q_sched:QSchedRecipe", "fewstep.jobs.q_sched:run"),
    "quantize": ("fewstep.jobs.quantize:QuantizeRecipe", "fewstep.jobs.quantize:run"),
    "schedule": ("fewstep.jobs.search:ScheduleRecipe", "fewstep.jobs.search:run"),
}
"""Two places written "module:name": the `Recipe` subclass, and `run(recipe, run: Run) -> Path | None`.

The path that `run` returns is what the command line shows at the end: usually the report.
"""


def register(kind: str, recipe: str, execute: str) -> None:
    """Make a kind of recipe known: `register("my-search", "mine:MyRecipe", "mine:run")`."""
    _KINDS[kind] = (recipe, execute)


def known() -> list[str]:
    """The known kinds."""
    return sorted(_KINDS)


def schema(kind: object) -> type[Recipe]:
    """The class of the recipes of a kind.

    Raises:
        FewstepError: no such kind.
    """
    found: type[Recipe] = imported(_places(kind)[0])
    return found


def runner(kind: object) -> Callable[..., Any]:
    """The function that executes the recipes of a kind.

    Raises:
        FewstepError: no such kind.
    """
    found: Callable[..., Any] = imported(_places(kind)[1])
    return found


def _places(kind: object) -> tuple[str, str]:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FewstepError("unknown recipe kind", value=kind, hint=nearest(str(kind), _KINDS))
    return _KINDS[kind]


def imported(place: str) -> Any:
    """What is at a place written "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
