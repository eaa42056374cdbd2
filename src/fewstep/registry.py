"""Parts by name: those of fewstep, those that a script adds, and those that installed packages bring.

`Registry` is a mapping name -> part. Where entries make the part from a short text such as `clip:folder`, a kind and
an argument that the kind understands, `Registry.load` does.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from fewstep.errors import FewstepError, PluginError, nearest
from fewstep.plugins import broken, load_plugin, plugin_names

Entry = TypeVar("Entry")
Value = TypeVar("Value")
Part = TypeVar("Part")
Maker = Callable[[str], Part]


class Registry(MutableMapping[str, Entry]):
    """Names of one kind of part.

    What another package brings is imported when its name is asked for, or when all names are; a package that is broken
    is an error in the first case, a warning in the second.

    Args:
        what: the kind of part, in messages ("solver").
        group: of the entry points by which other packages bring more; none unless given.
        own: the first entries.
        package: every module of it is imported at the first look-up, so that one file is enough to join.
        decorator: by which a plug-in enters itself, where the object behind its entry point is not the part.
        source: what was written to make a part, the part itself unless given; a second one is refused.
        part: the type, or the protocol that can be checked at run time, of what entries make that are asked by `load`.
    """

    def __init__(
        self,
        what: str,
        group: str = "",
        own: Mapping[str, Entry] | None = None,
        *,
        package: str = "",
        decorator: str = "",
        source: Callable[[Entry], object] = lambda entry: entry,
        part: Any = object,
    ) -> None:
        self.what, self.group, self.package, self.decorator, self.source = what, group, package, decorator, source
        self.part = part
        self.own: dict[str, Entry] = dict(own or {})
        self.brought: set[str] = set()
        """Names that came from other packages."""
        self._gathered = not package

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that enters a part under a name; the same one may enter again, as a notebook's cell does.

        Raises:
            ValueError: another part has that name.
        """

        def join(entry: Entry) -> Entry:
            if name in self.own and _place(self.source(self.own[name])) != _place(self.source(entry)):
                raise ValueError(f"there is a {self.what} {name!r} already")
            self.own[name] = entry
            return entry

        return join

    def find(self, name: str) -> Entry:
        """The part of that name.

        Raises:
            FewstepError: there is none; the nearest name is told.
            PluginError: the package that brings it is broken.
        """
        try:
            return self[name]
        except KeyError:
            raise FewstepError(f"unknown {self.what}", value=name, hint=nearest(name, self)) from None

    def kinds(self) -> list[str]:
        """All names, sorted."""
        return sorted(self)

    def load(self: Registry[Maker[Part]], spec: str) -> Part:
        """What is made for `kind` or `kind:argument`.

        Raises:
            FewstepError: the kind is unknown, or does not understand its argument.
            PluginError: the package that brings the kind is broken.
        """
        kind, _, argument = self.check(spec).partition(":")
        make, brought = self[kind], kind in self.brought
        try:
            made = make(argument)
        except FewstepError:
            raise
        except Exception as error:
            if not brought:
                raise
            raise broken(self.group, kind, f"fails with {type(error).__name__}: {error}") from error
        if brought and not isinstance(made, self.part):
            raise broken(self.group, kind, f"makes a {type(made).__name__}, which is no {self.what}")
        return made

    def check(self, spec: str) -> str:
        """The spec itself, if its kind is known; no part is made.

        Raises:
            FewstepError: it is not.
        """
        kind = spec.partition(":")[0]
        if kind not in self:
            raise FewstepError(f"unknown {self.what} {kind!r}", value=spec, hint=nearest(kind, self))
        return spec

    def __getitem__(self, name: str) -> Entry:
        self._gather()
        if name not in self.own and self.group:
            self._adopt(name)
        return self.own[name]

    def __iter__(self) -> Iterator[str]:
        self._gather()
        for name in plugin_names(self.group) if self.group else ():
            if name not in self.own:
                try:
                    self._adopt(name)
                except PluginError as error:
                    warnings.warn(f"left out: {error}", stacklevel=2)
        return iter(list(self.own))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.own[name] = entry

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def __repr__(self) -> str:
        return f"<{self.what}: {', '.join(sorted(self))}>"

    def _gather(self) -> None:
        if self._gathered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._gathered = True

    def _adopt(self, name: str) -> None:
        """Enter what a package brings under this name, if one does."""
        found = load_plugin(self.group, name)
        if found is None:
            return
        if not self.decorator and callable(found):
            self.own[name] = found  # type: ignore[assignment]
        elif not self.decorator:
            raise broken(self.group, name, f"is a {type(found).__name__}, which cannot be called")
        elif name not in self.own:
            raise broken(self.group, name, f"is not entered under this name: decorate it with @{self.decorator}")
        self.brought.add(name)


class View(Mapping[str, Value]):
    """A part of a registry, or one side of its entries: the names at which `value` (entry) is not None."""

    def __init__(self, table: Registry[Entry], value: Callable[[Entry], Value | None]) -> None:
        self.table, self.value = table, value

    def __getitem__(self, name: str) -> Value:
        value = self.value(self.table[name])
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.table if self.value(self.table[name]) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<{self.table.what}: {', '.join(sorted(self))}>"


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


def _place(part: object) -> tuple[str, str]:
    """Where a part was written."""
    kind = part if hasattr(part, "__qualname__") else type(part)
    return str(getattr(kind, "__module__", "")), str(getattr(kind, "__qualname__", ""))
