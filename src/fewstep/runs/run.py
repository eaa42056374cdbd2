"""The run directory: every piece of work is a named unit that is computed once and then kept.

FOLDER/fewstep.json      says that this folder is a run of fewstep; nothing is written into a folder of others
FOLDER/recipe.yaml       the resolved recipe; `fewstep run FOLDER/recipe.yaml` repeats the run
FOLDER/log.jsonl         one line per event, in order
FOLDER/units/NAME.json   what a finished unit left: its value or the name of its artifact, and its seconds
FOLDER/artifacts/...     files and folders that units wrote

The folder is the run's from its first finished unit on (`fewstep.runs.folder`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from fewstep.errors import FewstepError
from fewstep.files import atomic, user_path
from fewstep.runs import processes
from fewstep.runs.environment import environment
from fewstep.runs.folder import LOCK, LOG, Folder, remove_scratch, writing
from fewstep.runs.progress import progress, screen
from fewstep.runs.records import plain, read_record, write_record
from fewstep.runs.shown import run_page, run_summary

T = TypeVar("T")

POLL = 0.1
"""Seconds between two looks for what another process makes."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")


class Run:
    """One run directory, locked for this process until `close` (or the end of the `with` block).

    Where several processes were launched the first one owns it. The others print and write nothing: they compute units
    that are made `together` and wait for the rest, which they read as the first one left them.

    Args:
        path: the folder; made if absent. It becomes this run's when the first unit is finished or keeps a checkpoint:
            a command that fails before leaves no trace.
        recipe: the resolved recipe as plain values. On a later `Run` of the same folder it must be equal.
        fresh: discard what an earlier run left there, as soon as there is something to put in its place.
        quiet: print nothing.

    Raises:
        FewstepError: another process holds the folder, it belongs to another recipe, holds files that are no
            run, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: Mapping[str, Any] | None = None,
        *,
        fresh: bool = False,
        quiet: bool = False,
    ) -> None:
        self.path = user_path(path)
        self.leads = processes.leads()
        self.quiet = quiet or not self.leads
        self._early: list[str] = []
        processes.join()
        if not self.leads:
            processes.meet()  # the first process has opened the folder
            return
        self._folder = Folder(self.path, recipe or {}, fresh)
        try:
            self.log("started", **environment())
            if fresh and processes.count() > 1:
                self.claim()  # the others look for units on the disk
            processes.meet()
        except BaseException:
            self._folder.release()
            raise

    def claim(self) -> None:
        """Make the folder this run's now; finished units and `scratch` do so by themselves."""
        if self.leads and self._folder.claim():
            early, self._early = self._early, []
            self._append(early)

    @property
    def _kept(self) -> bool:
        """Whether what lies in the folder is this run's."""
        return not self.leads or self._folder.claimed

    # --- units ------------------------------------------------------------------------------------------------------

    def unit(
        self,
        name: str,
        compute: Callable[[], T],
        *,
        save: Callable[[T, Path], object] | None = None,
        load: Callable[[Path], T] | None = None,
        artifact: str | None = None,
        together: bool = False,
    ) -> T:
        """The result of `compute`, from disk if this run (or an earlier process in this folder) has finished it.

        Without `save` and `load` the result must be JSON values. With them `save(result, draft)` writes a file or a
        folder that becomes `artifacts/<artifact or name>`, and what is returned was read back by `load`, so that the
        first run and a resumed one go on with the same thing. A unit counts as done only when its artifact is whole.

        together: all processes compute it (a training); what the first one computed is kept.

        Raises:
            FewstepError: an unfit name, `save` without `load`, a result that is not JSON, or a full disk.
        """
        _check_name(name)
        if (save is None) != (load is None):
            raise FewstepError(f"unit {name!r} needs both save and load, or neither", hint="Give the other one.")
        place = self.artifact(artifact or name)
        if together and processes.count() > 1:
            self.claim()  # the others begin to write their share
            processes.meet()
        record = self._record(name)
        absent = record is None or (not place.exists() if load is not None else "value" not in record)
        if together and processes.count() > 1:
            processes.meet()  # nobody begins, and so ends, before all have looked
        if not self.leads:
            if absent and together:
                compute()
            record = self._awaited(name, None if load is None else place)
        elif record is None or absent:
            record = self._finish(name, compute, save, place)
        else:
            self.say(f"[dim]✓ {name} (kept, {record['seconds']:.1f} s when it was made)[/dim]")
        return load(place) if load is not None else record["value"]

    def artifact(self, name: str) -> Path:
        """Where the artifact of that name lies, or will lie."""
        _check_name(name)
        return self.path / "artifacts" / name

    def scratch(self, name: str) -> Path:
        """A folder for a unit's own checkpoints; kept over a kill, removed when the run has finished."""
        folder = self.artifact(f"scratch/{name}")
        self.claim()
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, name: str) -> bool:
        """Whether the unit is finished."""
        return self._record(name) is not None

    def seconds(self) -> dict[str, float]:
        """What each finished unit took, in the order of their names."""
        place = self.path / "units"
        files = sorted(place.rglob("*.json")) if self._kept else []
        return {f.relative_to(place).with_suffix("").as_posix(): read_record(f)["seconds"] for f in files}

    # --- log and screen ---------------------------------------------------------------------------------------------

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl; what is told before the folder is this run's is kept until then."""
        if not self.leads:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str)
        if self._kept:
            self._append([line])
        else:
            self._early.append(line)

    def _append(self, lines: list[str]) -> None:
        with writing(self.path), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def events(self) -> list[dict[str, Any]]:
        """The log; a line that a kill cut short, or that is none of ours, is left out."""
        if self._kept:
            with writing(self.path):
                lines = (self.path / LOG).read_bytes().decode("utf-8", "replace").split("\n")
        else:
            lines = self._early
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                found.append(event)
        return found

    def say(self, text: str) -> None:
        """Print a line of rich markup unless the run is quiet."""
        if not self.quiet:
            screen().print(text, highlight=False)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """A bar with time left, or a line every half minute without a terminal; yields `advance(count=1, note="")`."""
        with progress(description, total, self.quiet) as advance:
            yield advance

    def __repr__(self) -> str:
        return run_summary(self.path)

    def _repr_html_(self) -> str:
        """What its report found, for notebooks."""
        return run_page(self.path)

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the folder back; the artifacts stay."""
        if self.leads:
            self._folder.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.leads:
            while error is None and not self._ended():
                time.sleep(POLL)
            return
        try:
            if error is not None:
                with suppress(FewstepError):  # the disk may be full
                    self.log("stopped", error=f"{type(error).__name__}: {error}"[:500])
            else:
                self.claim()
                remove_scratch(self.path)
        finally:
            self.close()

    def _ended(self) -> bool:
        """Whether the first process has given the folder back, or died: the system then drops its lock."""
        if not (self.path / LOCK).exists():
            return True
        try:
            with FileLock(self.path / LOCK, timeout=0):
                return True
        except Timeout:
            return False

    def _awaited(self, name: str, place: Path | None) -> dict[str, Any]:
        """The record of a unit that the first process makes."""
        while True:
            ended = self._ended()  # before the look, so that its last unit is seen
            record = self._record(name)
            if record is not None and (place is None or place.exists()):
                return record
            if ended:
                raise FewstepError(
                    f"the first process ended before unit {name!r}", hint="Its message says why; run the command again."
                )
            time.sleep(POLL)

    def _record(self, name: str) -> dict[str, Any] | None:
        _check_name(name)
        file = self.path / "units" / f"{name}.json"
        return read_record(file) if self._kept and file.exists() else None

    def _finish(
        self, name: str, compute: Callable[[], T], save: Callable[[T, Path], object] | None, place: Path
    ) -> dict[str, Any]:
        self._announce(name)
        begun = time.perf_counter()
        value = compute()
        record: dict[str, Any] = {"unit": name, "seconds": round(time.perf_counter() - begun, 3)}
        if save is None:
            record["value"] = plain(name, value)
        self.claim()
        if save is not None:
            with atomic(place, over="all") as draft:
                save(value, draft)
            record["artifact"] = place.relative_to(self.path).as_posix()
        write_record(self.path / "units" / f"{name}.json", record)  # last: it is what makes the unit done
        self.log("finished", unit=name, seconds=record["seconds"])
        self.say(f"[green]✓[/green] {name} [dim]{record['seconds']:.1f} s[/dim]")
        return record

    def _announce(self, name: str) -> None:
        """Say what begins; on a terminal the line of its end takes its place."""
        if not self.quiet:
            console = screen()
            console.print(f"▸ {name}", style="bold", highlight=False, end="\r" if console.is_terminal else "\n")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FewstepError("unfit name of a unit or artifact", value=name, hint="Use letters, digits, . _ - and /.")
