"""Which class reads a recipe of a kind and which function runs it; both are imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.errors import RecipeError, nearest
from fewstep.recipes.base import Recipe


@dataclass(frozen=True)
class Kind:
    """Two places written "module:name": the `Recipe` subclass, and `run(recipe, run: Run) -> Path | None`.

    The path that `run` returns is what the command line shows at the end: usually the report.
    """

    recipe: str
    execute: str

    def schema(self) -> type[Recipe]:
        """The class of these recipes."""
        found: type[Recipe] = _imported(self.recipe)
        return found

    def runner(self) -> Callable[..., Any]:
        """The function that executes these recipes."""
        found: Callable[..., Any] = _imported(self.execute)
        return found


_KINDS: dict[str, Kind] = {
    "auto": Kind("fewstep.jobs.auto:AutoRecipe", "fewstep.jobs.auto:run"),
    "distill": Kind("fewstep.jobs.distill:DistillRecipe", "fewstep.jobs.distill:run"),
    "q-sched": Kind("fewstep.jobs.q_sched:QSchedRecipe", "fewstep.jobs.q_sched:run"),
    "quantize": Kind("fewstep.jobs.quantize:QuantizeRecipe", "fewstep.jobs.quantize:run"),
    "schedule": Kind("fewstep.jobs.search:ScheduleRecipe", "fewstep.jobs.search:run"),
}


def register(kind: str, recipe: str, execute: str) -> None:
    """Make a kind of recipe known: `register("my-search", "mine:MyRecipe", "mine:run")`."""
    _KINDS[kind] = Kind(recipe, execute)


def known() -> list[str]:
    """The known kinds."""
    return sorted(_KINDS)


def find(kind: object) -> Kind:
    """The kind of that name.

    Raises:
        RecipeError: no such kind.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RecipeError("unknown recipe kind", value=kind, hint=nearest(str(kind), _KINDS))
    return _KINDS[kind]


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
