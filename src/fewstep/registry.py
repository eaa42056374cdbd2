"""Parts chosen by a short text such as `clip:folder`: a kind, and an argument that the kind understands."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from fewstep.errors import FewstepError, nearest

Part = TypeVar("Part")
Maker = Callable[[str], Part]


class Registry(Generic[Part]):
    """Kinds of one part; every module of `package` is imported at the first look-up, so one file is enough to join."""

    def __init__(self, what: str, package: str) -> None:
        self.what, self.package = what, package
        self._makers: dict[str, Maker[Part]] = {}

    def register(self, kind: str) -> Callable[[Maker[Part]], Maker[Part]]:
        """Decorator of a function (argument of the spec, maybe empty) -> part."""

        def join(make: Maker[Part]) -> Maker[Part]:
            self._makers[kind] = make
            return make

        return join

    def kinds(self) -> list[str]:
        """Names of all kinds."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._makers)

    def load(self, spec: str) -> Part:
        """Part for `kind` or `kind:argument`.

        Raises:
            FewstepError: the kind is unknown, or does not understand its argument.
        """
        kind, _, argument = self.check(spec).partition(":")
        return self._makers[kind](argument)

    def check(self, spec: str) -> str:
        """The spec itself, if its kind is known; nothing is loaded.

        Raises:
            FewstepError: it is not.
        """
        kind, kinds = spec.partition(":")[0], self.kinds()
        if kind not in kinds:
            raise FewstepError(f"unknown {self.what} {kind!r}", value=spec, hint=nearest(kind, kinds))
        return spec


def no_argument(what: str, argument: str) -> None:
    """Refuse an argument given to a kind that takes none.

    Raises:
        FewstepError: `argument` is not empty.
    """
    if argument:
        raise FewstepError(f"{what} takes no argument", value=argument, hint=f"Write {what!r} alone.")


def need_argument(what: str, argument: str, meaning: str) -> str:
    """The argument, refused when empty; `meaning` stands for it in the message, such as `FOLDER_OR_ID`.

    Raises:
        FewstepError: `argument` is empty.
    """
    if not argument:
        raise FewstepError(f"{what} needs an argument", hint=f"Write {what}:{meaning}.")
    return argument
