"""Makes diffusers and transformers open what fewstep saves, in whichever order all are imported, importing none here.

Saved folders name our components by this package (`PUBLIC`), which finds them when diffusers asks. Both libraries keep
their low-bit formats in a dictionary of a module that takes seconds to import: ours is added as soon as it is there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TypeVar

Kind = TypeVar("Kind", bound=type)

PUBLIC = "fewstep"
"""The module that `model_index.json` names; `component` says so to diffusers."""

LISTS = {
    "diffusers.quantizers.auto": "fewstep.pipelines.low_bit.models",
    "transformers.quantizers.auto": "fewstep.pipelines.low_bit.encoders",
}
"""The module with the dictionary -> our module that adds to it when it is imported."""


MOVED = ("fewstep.plan.scheduler",)
"""Modules that folders, pickles and scripts of earlier versions name; what they ask for there is an attribute of
`PUBLIC`."""


def component(kind: Kind) -> Kind:
    """Decorator of a class that pipelines have as a component: diffusers finds it as an attribute of this package."""
    kind.__module__ = PUBLIC
    return kind


class ImportWatcher(MetaPathFinder):
    """Imports a module of ours right after a module of others was imported.

    It finds nothing itself: what the finders behind it find is extended by the call.
    """

    def __init__(self, followers: Mapping[str, str]) -> None:
        self.followers = dict(followers)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders say of a module that we wait for; None for all others."""
        if fullname not in self.followers:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(self.followers[fullname])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


WATCHER = ImportWatcher(LISTS)


def _stand_in(name: str) -> ModuleType:
    """A module in the place of one that is gone: diffusers looks only among modules that are there already."""

    def found(wanted: str) -> object:
        if wanted.startswith("__"):  # what inspect and others ask of every module
            raise AttributeError(f"module {name!r} has no attribute {wanted!r}")
        return getattr(sys.modules[PUBLIC], wanted)

    module = ModuleType(name)
    module.__getattr__ = found  # type: ignore[method-assign]
    return module


def register_when_needed() -> None:
    """Make diffusers and transformers know the low-bit format, now or right after they are imported; idempotent."""
    for name in MOVED:
        sys.modules.setdefault(name, _stand_in(name))
    if WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, WATCHER)
    for theirs, ours in LISTS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
