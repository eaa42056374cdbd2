"""The run directory: every piece of work is a named unit that is computed once and then kept.

FOLDER/recipe.yaml       the resolved recipe; `fewstep run FOLDER/recipe.yaml` repeats the run
FOLDER/log.jsonl         one line per event, in order
FOLDER/units/NAME.json   what a finished unit left: its value or the name of its artifact, and its seconds
FOLDER/artifacts/...     files and folders that units wrote
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from fewstep.errors import FewstepError
from fewstep.files import atomic, read_json, write_json, write_text
from fewstep.runs import processes
from fewstep.runs.environment import environment
from fewstep.runs.settings import check_same

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

POLL = 0.1
"""Seconds between two looks for what another process makes."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")  # what `fewstep.files.atomic` names its drafts
_OWN = ("recipe.yaml", "log.jsonl", "units", "artifacts", "owner.json", "results.json", "report.html")


class Run:
    """One run directory, locked for this process until `close` (or the end of the `with` block).

    Where several processes were launched the first one owns it. The others print and write nothing: they compute units
    that are made `together` and wait for the rest, which they read as the first one left them.

    Args:
        path: the folder; made if absent.
        recipe: the resolved recipe as plain values. On a later `Run` of the same folder it must be equal.
        fresh: discard what an earlier run left there.
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
        self.path = Path(path)
        self.leads = processes.leads()
        self.quiet = quiet or not self.leads
        processes.join()
        if not self.leads:
            processes.meet()  # the first process has claimed the folder
            return
        self._lock = _locked(self.path)
        try:
            ours = (self.path / "recipe.yaml").exists()
            if fresh and ours:
                self._discard()
            self._claim(dict(recipe or {}), ours)
            processes.meet()
        except BaseException:
            self._lock.release()
            raise

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
            raise FewstepError(f"unit {name!r} needs both save and load, or neither", mend="Give the other one.")
        place = self.artifact(artifact or name)
        if together:
            processes.meet()
        record = self._record(name)
        absent = record is None or (load is not None and not place.exists())
        if together:
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
        """A folder for a unit's own checkpoints; kept over a kill, the unit's to remove."""
        folder = self.artifact(f"scratch/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, name: str) -> bool:
        """Whether the unit is finished."""
        return self._record(name) is not None

    def seconds(self) -> dict[str, float]:
        """What each finished unit took, in the order of their names."""
        files = sorted((self.path / "units").rglob("*.json"))
        return {f.relative_to(self.path / "units").with_suffix("").as_posix(): read_json(f)["seconds"] for f in files}

    # --- log and screen ---------------------------------------------------------------------------------------------

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl."""
        if not self.leads:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, default=str, ensure_ascii=False)
        with _writing(self.path), (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The log; a line that a kill cut short is left out."""
        found = []
        for line in (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found

    def say(self, text: str) -> None:
        """Print a line of rich markup unless the run is quiet."""
        if not self.quiet:
            _console().print(text, highlight=False)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """A progress bar with time left; yields `advance(count=1, note="")`."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=_console(), transient=True, disable=self.quiet) as bar:
            task = bar.add_task(description, total=total, note="")

            def advance(count: int = 1, note: str = "") -> None:
                bar.update(task, advance=count, note=note)

            yield advance

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the folder back; the artifacts stay."""
        if not self.leads:
            return
        (self.path / "owner.json").unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.log("stopped", error=f"{type(error).__name__}: {error}"[:500])
        elif not self.leads:
            while not self._ended():
                time.sleep(POLL)
        self.close()

    def _ended(self) -> bool:
        """Whether the first process has given the folder back, or died: the system then drops its lock."""
        try:
            with FileLock(self.path / "run.lock", timeout=0):
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
                    f"the first process ended before unit {name!r}", mend="Its message says why; run the command again."
                )
            time.sleep(POLL)

    def _claim(self, recipe: dict[str, Any], ours: bool) -> None:
        file = self.path / "recipe.yaml"
        if file.exists():
            check_same(self.path, recipe)
        else:
            names = (p.name for p in self.path.iterdir() if not p.name.startswith("."))
            strangers = sorted(name for name in names if name not in (*_OWN, "run.lock"))
            if strangers and not ours:
                raise FewstepError(
                    f"{self.path} holds files that are not a run of fewstep",
                    value=strangers[:5],
                    mend="Choose an empty or new folder.",
                )
            write_text(file, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        self._sweep()
        write_json(self.path / "owner.json", {"process": os.getpid()})
        self._mend_log()
        self.log("started", **environment())

    def _discard(self) -> None:
        for name in _OWN:
            item = self.path / name
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove drafts of a killed process: nobody else writes here while the lock is held."""
        for draft in [p for p in self.path.rglob(".*") if p.is_dir() and _DRAFT.fullmatch(p.name)]:
            shutil.rmtree(draft, ignore_errors=True)

    def _mend_log(self) -> None:
        log = self.path / "log.jsonl"
        if log.exists() and (data := log.read_bytes()) and not data.endswith(b"\n"):
            with log.open("ab") as file:
                file.write(b"\n")

    def _record(self, name: str) -> dict[str, Any] | None:
        _check_name(name)
        file = self.path / "units" / f"{name}.json"
        return read_json(file) if file.exists() else None

    def _finish(
        self, name: str, compute: Callable[[], T], save: Callable[[T, Path], object] | None, place: Path
    ) -> dict[str, Any]:
        self._announce(name)
        begun = time.perf_counter()
        value = compute()
        record: dict[str, Any] = {"unit": name, "seconds": round(time.perf_counter() - begun, 3)}
        if save is None:
            record["value"] = _plain(name, value)
        else:
            with atomic(place) as draft:
                save(value, draft)
            record["artifact"] = place.relative_to(self.path).as_posix()
        write_json(self.path / "units" / f"{name}.json", record)  # last: it is what makes the unit done
        self.log("finished", unit=name, seconds=record["seconds"])
        self.say(f"[green]✓[/green] {name} [dim]{record['seconds']:.1f} s[/dim]")
        return record

    def _announce(self, name: str) -> None:
        """Say what begins; on a terminal the line of its end takes its place."""
        if not self.quiet:
            console = _console()
            console.print(f"▸ {name}", style="bold", highlight=False, end="\r" if console.is_terminal else "\n")


def _locked(path: Path) -> FileLock:
    """The lock of a run folder. The system drops it when its process dies, however it dies, so it is never stale."""
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "run.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            owner = path / "owner.json"
            who = f" (process {read_json(owner)['process']})" if owner.exists() else ""
            raise FewstepError(
                f"{path} is being written by another fewstep{who}",
                mend="Wait for it, or give another folder with --out.",
            ) from error
    return lock


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FewstepError(
            f"cannot write {path}: {error.strerror or error}",
            mend="Free some space or choose a folder you may write to with --out.",
        ) from error


def _plain(name: str, value: Any) -> Any:
    """The value as it will be read back, so that the first run and a resumed one see the same thing."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FewstepError(
            f"the result of unit {name!r} is not plain JSON: {error}", mend="Give save and load."
        ) from error


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FewstepError("unfit name of a unit or artifact", value=name, mend="Use letters, digits, . _ - and /.")


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
