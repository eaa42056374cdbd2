"""Makes diffusers open what fewstep saves once both are imported, in whichever order, without importing either here.

Saved folders name our components by this package (`PUBLIC`), which finds them when diffusers asks; the low-bit format
is registered as soon as diffusers has the table for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)

PUBLIC = "fewstep"
"""The module that `model_index.json` names; `component` says so to diffusers."""

_TABLE = "diffusers.quantizers.auto"


def component(kind: Kind) -> Kind:
    """Decorator of a class that pipelines have as a component: diffusers finds it as an attribute of this package."""
    kind.__module__ = PUBLIC
    return kind


def register_when_needed() -> None:
    """Register the low-bit format with diffusers now, or right after it is imported."""
    if _TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTable) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTable())


class _AfterTable(MetaPathFinder):
    """Finds the table of diffusers as everyone would, once, and registers after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            _register()

        vars(spec.loader)["exec_module"] = then_register
        return spec


def _register() -> None:
    if "fewstep.quant" not in sys.modules:  # which registers itself, and may be what imports the table
        importlib.import_module("fewstep.quant")
