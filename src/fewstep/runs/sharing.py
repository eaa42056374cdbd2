"""Work that several processes share: pieces in files, each made by the process that holds its lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from fewstep.errors import FewstepError, Stop
from fewstep.files import read_tensors, write_tensors
from fewstep.runs.folder import LOCK, read_events

if TYPE_CHECKING:
    from torch import Tensor

PAUSE, POLL = 0.005, 0.1
"""Seconds between two looks for pieces that others make, and for whole units."""

T = TypeVar("T")


def shared_pieces(
    folder: Path, work: Mapping[str, Callable[[], Tensor]], done: Callable[[], bool]
) -> dict[str, Tensor]:
    """The value of every piece, made here or by another process, in the order of `work`.

    The system drops the lock of a process that dies, and its piece is anyone's again: one piece is lost.

    Args:
        folder: where the pieces lie.
        work: what makes each piece, by the name of its file.
        done: whether the pieces are needed no more.

    Raises:
        Stop: they are not, the unit is finished: whoever helps can go on. Never leaves `fewstep.runs`.
    """
    found: dict[str, Tensor] = {}
    while True:
        for name in [name for name in work if name not in found]:
            file, lock = folder / f"{name}.safetensors", FileLock(folder / f"{name}.lock")
            if not file.exists() and _taken(lock):
                try:
                    if not file.exists():  # it may have been finished between the two looks
                        write_tensors(file, {"value": work[name]().contiguous()}, over="all")
                finally:
                    lock.release()
            if file.exists():
                found[name] = read_tensors(file)["value"]
        if len(found) == len(work):
            return {name: found[name] for name in work}
        if done():
            raise Stop
        time.sleep(PAUSE)


def awaited(path: Path, unit: str, look: Callable[[], T | None], together: bool) -> T | None:
    """What `look` finds of a unit, as soon as it is there; None where the first process died before.

    Raises:
        FewstepError: it ended by an error, or in the midst of a training.
    """
    while True:
        ended = first_ended(path)  # before the look, so that its last unit is seen
        found = look()
        if found is not None:
            return found
        if ended and (together or [event["event"] for event in read_events(path)][-1:] == ["stopped"]):
            hint = "Its message says why; run the command again."
            raise FewstepError(f"the first process ended before unit {unit!r}", hint=hint)
        if ended:
            return None
        time.sleep(POLL)


def first_ended(path: Path) -> bool:
    """Whether the process that owned a run has given it back, or died: the system then drops its lock."""
    if not (path / LOCK).exists():
        return True
    lock = FileLock(path / LOCK)
    free = _taken(lock)
    lock.release()
    return free


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
