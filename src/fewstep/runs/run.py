"""The run directory: every piece of work is a named unit that is computed once and then kept.

FOLDER/fewstep.json      says that this folder is a run of fewstep; nothing is written into a folder of others
FOLDER/recipe.yaml       the resolved recipe; `fewstep run FOLDER/recipe.yaml` repeats the run
FOLDER/log.jsonl         one line per event, in order
FOLDER/units/NAME.json   what a finished unit left: its value or the name of its artifact, and its seconds
FOLDER/artifacts/...     files and folders that units wrote
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import FewstepError, Stop
from fewstep.files import atomic, user_path
from fewstep.runs import processes
from fewstep.runs.environment import environment
from fewstep.runs.folder import LOG, Folder, is_run, read_events, remove_scratch, writing
from fewstep.runs.progress import announce, progress, screen
from fewstep.runs.records import check_name, events_of, plain_json, read_record, write_record
from fewstep.runs.sharing import POLL, awaited, first_ended, shared_pieces
from fewstep.runs.shown import run_page, run_summary

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Run:
    """One run directory, locked for this process until `close` (or the end of the `with` block).

    Where several processes were launched the first one owns it. The others print nothing: they compute units that are
    made `together`, pieces of those that are `shared`, and read the rest. If the first dies, another takes its place.

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
        self.quiet, self._asked_quiet = quiet or not self.leads, quiet
        self._recipe, self._helping, self._early = dict(recipe or {}), "", list[str]()
        processes.join()
        if not self.leads:
            processes.meet()  # the first process has opened the folder
            return
        self._folder = Folder(self.path, self._recipe, fresh)
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
        shared: bool = False,
    ) -> T:
        """The result of `compute`, from disk if this run (or an earlier process in this folder) has finished it.

        Without `save` and `load` the result must be JSON values. With them `save(result, draft)` writes a file or a
        folder that becomes `artifacts/<artifact or name>`, and what is returned was read back by `load`, so that the
        first run and a resumed one go on with the same thing. A unit counts as done only when its artifact is whole.

        together: all processes compute it, with gradients in common (a training); what the first one computed is kept.
        shared: all processes compute it, and what costs time in it goes through `each`.

        Raises:
            FewstepError: an unfit name, `save` without `load`, a result that is not JSON, or a full disk.
        """
        check_name(name)
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
        if not self.leads and absent and (together or shared):
            self._help(name, compute)
        if not self.leads and (waited := self._awaited(name, None if load is None else place, together)) is not None:
            record = waited
        elif record is None or absent:
            record = self._finish(name, compute, save, place)
        else:
            self.say(f"[dim]✓ {name} (kept, {record['seconds']:.1f} s when it was made)[/dim]")
        return load(place) if load is not None else record["value"]

    def each(self, name: str, work: Mapping[str, Callable[[], Tensor]]) -> list[Tensor]:
        """Pieces of work that need nothing of one another, in the order of `work`.

        Each is made by the process that takes it first, and read by the others. All must ask for the same pieces, in a
        unit that is `shared` or outside of any; the name of a piece tells what it depends on beside the recipe.
        """
        if processes.count() == 1:
            return [compute() for compute in work.values()]
        folder = self.scratch(f"shared/{name}")
        return list(shared_pieces(folder, work, lambda: bool(self._helping) and self.done(self._helping)).values())

    def ahead(self, name: str, work: Mapping[str, Callable[[], Tensor]]) -> None:
        """Let several processes make what later calls of `each` will ask for; one process waits for those."""
        if processes.count() > 1 and work:
            self.each(name, work)

    def artifact(self, name: str) -> Path:
        """Where the artifact of that name lies, or will lie."""
        check_name(name)
        return self.path / "artifacts" / name

    def scratch(self, name: str) -> Path:
        """A folder for a unit's own checkpoints; kept over a kill, removed when the run has finished."""
        folder = self.artifact(f"scratch/{name}")
        self.claim()
        while not self.leads and not is_run(self.path) and not first_ended(self.path):
            time.sleep(POLL)  # the first process makes the folder its own
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
        return read_events(self.path) if self._kept else events_of(self._early)

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
        if error is None:
            with suppress(FewstepError):  # one that died is not waited for
                processes.meet()
        if not self.leads:
            while error is None and not first_ended(self.path):
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

    def _help(self, name: str, compute: Callable[[], object]) -> None:
        """Take part in a unit that the first process will keep."""
        outer, self._helping = self._helping, name
        try:
            with suppress(Stop):
                compute()
        finally:
            self._helping = outer

    def _awaited(self, name: str, place: Path | None, together: bool) -> dict[str, Any] | None:
        """The record of a unit that the first process makes; None where that one died, and this one takes its place."""

        def look() -> dict[str, Any] | None:
            record = self._record(name)
            return record if place is None or place.exists() else None

        while (record := awaited(self.path, name, look, together)) is None and not self._succeeds():
            pass
        return record

    def _succeeds(self) -> bool:
        """Take the place of the first process; another of the others may have been faster."""
        try:
            self._folder = Folder(self.path, self._recipe, alone=False)
        except FewstepError:
            if first_ended(self.path):
                raise
            return False
        self.leads, self.quiet = True, self._asked_quiet
        self.log("succeeded", process=processes.index())
        return True

    def _record(self, name: str) -> dict[str, Any] | None:
        check_name(name)
        file = self.path / "units" / f"{name}.json"
        return read_record(file) if self._kept and file.exists() else None

    def _finish(
        self, name: str, compute: Callable[[], T], save: Callable[[T, Path], object] | None, place: Path
    ) -> dict[str, Any]:
        announce(name, self.quiet)
        begun = time.perf_counter()
        value = compute()
        record: dict[str, Any] = {"unit": name, "seconds": round(time.perf_counter() - begun, 3)}
        if save is None:
            record["value"] = plain_json(name, value)
        self.claim()
        if save is not None:
            with atomic(place, over="all") as draft:
                save(value, draft)
            record["artifact"] = place.relative_to(self.path).as_posix()
        write_record(self.path / "units" / f"{name}.json", record)  # last: it is what makes the unit done
        self.log("finished", unit=name, seconds=record["seconds"])
        self.say(f"[green]✓[/green] {name} [dim]{record['seconds']:.1f} s[/dim]")
        return record
