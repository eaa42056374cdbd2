"""Makes the method `fewstep` known to diffusers and transformers, without importing them.

Both keep their methods in a dictionary of a module that takes seconds to import. Where it is imported already, ours are
added at once; otherwise as soon as somebody imports it, which every `from_pretrained` does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LISTS = {
    "diffusers.quantizers.auto": "fewstep.quant.storage",
    "transformers.quantizers.auto": "fewstep.quant.encoders",
}
"""The module with the dictionary -> our module that adds to it when it is imported."""


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


def register() -> None:
    """Make diffusers and transformers know the method `fewstep`, now or when they are imported; idempotent."""
    if WATCHER not in sys.meta_path:
        sys.meta_path.insert(0, WATCHER)
    for theirs, ours in LISTS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
