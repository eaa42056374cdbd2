"""The run directory as a place: whose it is, who holds it, and when it becomes a run's."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fewstep.errors import FewstepError
from fewstep.files import make_folders, read_json, remove_empty, system_error, user_path, write_json, write_text
from fewstep.ownership import read_marker, write_marker
from fewstep.runs.records import events_of
from fewstep.runs.settings import check_same

LOCK, OWNER, RECIPE, LOG = "run.lock", "owner.json", "recipe.yaml", "log.jsonl"
KIND = "run"
_DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")  # what `fewstep.files.atomic` names its drafts
_OWN = (RECIPE, LOG, "units", "artifacts", OWNER, "results.json", "report.html")


class Folder:
    """A directory that is locked for this process from the start, and becomes a run's when there is work to keep.

    Until `claim` nothing but the lock stands in it, and `release` takes that back: a command that fails at once leaves
    no trace, and whatever an earlier run left is still there.

    Args:
        fresh: at the claim, discard what an earlier run left.
        alone: nobody else writes here; what processes that died left half-written is removed.

    Raises:
        FewstepError: another process holds the folder, it belongs to another recipe, holds files that are no
            run of fewstep, or cannot be written.
    """

    def __init__(self, path: str | Path, recipe: Mapping[str, Any], fresh: bool = False, *, alone: bool = True) -> None:
        self.path = user_path(path)
        self.recipe = json.loads(json.dumps(dict(recipe), default=str))  # as it is read back; nothing in it is shared
        check_whose(self.path)
        with writing(self.path):
            self._made = make_folders(self.path)
        try:
            self._lock = _locked(self.path)
        except BaseException:
            remove_empty(self._made)
            raise
        try:
            with writing(self.path):
                ours = check_whose(self.path)  # somebody may have been here before the lock
                if ours and not fresh:
                    check_same(self.path, self.recipe)
                self.claimed = ours and not fresh
                write_json(self.path / OWNER, {"process": os.getpid()}, over="all")
                if self.claimed and alone:
                    self._settle()
        except BaseException:
            self.release()
            raise

    claimed = False

    def claim(self) -> bool:
        """Make the folder this run's, once; returns whether it was not before."""
        if self.claimed:
            return False
        with writing(self.path):
            if is_run(self.path):
                self._discard()
            write_marker(self.path, {"kind": KIND})
            write_text(self.path / RECIPE, yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True), over="all")
            self._settle()
        self.claimed = True
        return True

    def release(self) -> None:
        """Give the folder back; without a claim it is as it was before."""
        try:
            with writing(self.path):
                (self.path / OWNER).unlink(missing_ok=True)
                if not self.claimed and not is_run(self.path):
                    (self.path / LOCK).unlink(missing_ok=True)
        finally:
            self._lock.release()
        if not self.claimed:
            remove_empty(self._made)

    def _settle(self) -> None:
        """Mark a folder of an older fewstep; remove drafts of a killed process, which nobody else writes while the lock
        is held; end a line of the log that a kill cut short."""
        if read_marker(self.path).get("kind") != KIND:
            write_marker(self.path, {"kind": KIND})
        for draft in [p for p in self.path.rglob(".*") if p.is_dir() and _DRAFT.fullmatch(p.name)]:
            shutil.rmtree(draft, ignore_errors=True)
        log = self.path / LOG
        if log.exists() and (data := log.read_bytes()) and not data.endswith(b"\n"):
            with log.open("ab") as file:
                file.write(b"\n")

    def _discard(self) -> None:
        linked = [name for name in _OWN if (self.path / name).is_symlink()]
        if linked:
            raise FewstepError(
                f"{self.path} is not discarded: parts of it are links to other places",
                value=linked,
                hint="Remove them by hand, or give another folder with --out.",
            )
        for name in _OWN:
            item = self.path / name
            if item.is_dir():
                shutil.rmtree(item)
            elif name != OWNER:
                item.unlink(missing_ok=True)


def check_whose(path: Path) -> bool:
    """Whether the folder is a run of fewstep; False where it is absent or holds nothing of anybody's.

    Raises:
        FewstepError: it holds what is neither.
    """
    with writing(path):
        if not path.exists():
            return False
        if is_run(path):
            return True
        strangers = sorted(p.name for p in path.iterdir() if not p.name.startswith(".") and not _trace(p))
    if strangers:
        raise FewstepError(
            f"{path} holds files that are not a run of fewstep",
            value=strangers[:5],
            hint="Choose an empty or new folder.",
        )
    return False


def is_run(path: Path) -> bool:
    """Whether fewstep ran here: by the marker, or, in older folders, by how fewstep begins a log beside the recipe."""
    if read_marker(path).get("kind") == KIND:
        return True
    if not (path / RECIPE).is_file() or not (path / LOG).is_file():
        return False
    with (path / LOG).open(encoding="utf-8", errors="replace") as file:
        try:
            first = json.loads(file.readline(1 << 16))
        except (ValueError, RecursionError):
            return False
    return isinstance(first, dict) and first.get("event") == "started" and "fewstep" in first


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of the log of a run; none where it has not begun."""
    if not (path / LOG).exists():
        return []
    with writing(path):
        return events_of((path / LOG).read_bytes().decode("utf-8", "replace").split("\n"))


def remove_scratch(path: Path) -> None:
    """Remove what units kept for themselves, and the folder above if nothing else is in it; links stay."""
    scratch = path / "artifacts" / "scratch"
    if scratch.is_symlink():
        return
    shutil.rmtree(scratch, ignore_errors=True)
    remove_empty([path / "artifacts"])


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what the system refuses as one sentence."""
    try:
        yield
    except Exception as error:
        reason = system_error(error)
        if reason is None:
            raise
        raise FewstepError(
            f"cannot write {path}: {reason}",
            hint="Free some space or choose a folder you may write to with --out.",
        ) from error


def _trace(file: Path) -> bool:
    """Whether this is what a process that died before its claim leaves."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > 64:
        return False
    if file.name == LOCK:
        return file.stat().st_size == 0
    return file.name == OWNER and _process(file) is not None


def _process(owner: Path) -> int | None:
    try:
        found = read_json(owner)
    except FewstepError:
        return None
    number = found.get("process") if isinstance(found, dict) and found.keys() == {"process"} else None
    return number if isinstance(number, int) else None


def _locked(path: Path) -> FileLock:
    """The lock of a run folder. The system drops it when its process dies, however it dies, so it is never stale."""
    file = path / LOCK
    with writing(path):
        if os.path.lexists(file) and not _trace(file):  # locking would empty it
            raise FewstepError(f"{file} is no lock of fewstep", hint="Choose an empty or new folder.")
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            number = _process(path / OWNER)
            who = "" if number is None else f" (process {number})"
            raise FewstepError(
                f"{path} is being written by another fewstep{who}",
                hint="Wait for it, or give another folder with --out.",
            ) from error
    return lock
