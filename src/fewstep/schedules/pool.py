"""Every schedule that was ever evaluated, in an Optuna storage: many workers fill it, a killed search goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.schedules.candidate import Candidate


@dataclass(frozen=True)
class PoolEntry:
    """An evaluated candidate; higher values are better."""

    candidate: Candidate
    value: float
    origin: str


class EvaluationPool:
    """Evaluations shared by all workers of one search.

    A schedule is evaluated once, however many candidates fold to it, and stored as a finished trial, so that nothing
    half done is ever seen. Searches decide from what is stored and from the number of the next evaluation alone: with
    one worker, a killed search continues to the same result.

    Args:
        score: candidate -> value.
        storage: file of the journal (made if absent), or an Optuna storage URL (`sqlite:///search.db`) for workers on
            several machines; None keeps everything in memory.
        name: the study inside the storage.
        task: what the values belong to; a storage filled for another task is refused.
        key: what tells one schedule from another; the candidate itself unless given.

    Raises:
        FewstepError: the storage cannot be opened, or holds another task's values.
    """

    def __init__(
        self,
        score: Callable[[Candidate], float],
        *,
        storage: str | Path | None = None,
        name: str = "schedule",
        task: str = "",
        key: Callable[[Candidate], str] | None = None,
        watch: Callable[[PoolEntry, int], None] | None = None,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._score, self._watch, self._key = score, watch, key
        self._keys: dict[str, str] = {}
        try:
            self._study = optuna.create_study(
                study_name=name, storage=_opened(storage), direction="maximize", load_if_exists=True
            )
        except Exception as error:  # every storage raises its own kind
            hint = "Give a file path, or an Optuna URL such as sqlite:///search.db."
            raise FewstepError(f"cannot open the search storage: {error}", value=str(storage), hint=hint) from error
        known = self._study.user_attrs.get("task", task)
        if known != task:
            hint = "Use another storage or name, or start afresh."
            raise FewstepError("this storage belongs to another search", value=known, hint=hint)
        if "task" not in self._study.user_attrs:
            self._study.set_user_attr("task", task)
        self._entries: dict[str, PoolEntry] = {}
        self._seen = 0
        self._refresh()

    def __len__(self) -> int:
        """Evaluations so far, of all workers."""
        self._refresh()
        return len(self._entries)

    def score(self, candidate: Candidate, origin: str = "") -> float:
        """The value of a candidate: remembered, or evaluated now and stored."""
        import optuna

        self._refresh()
        key = self._folded(candidate)
        if key not in self._entries:
            value = self._score(candidate)
            attributes = {"candidate": candidate.key, "origin": origin}
            self._study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attributes))
            self._refresh()
            if self._watch is not None:
                self._watch(self._entries[key], len(self._entries))
        return self._entries[key].value

    def knows(self, candidate: Candidate) -> bool:
        """Whether a candidate, or another of the same schedule, was evaluated."""
        return self._folded(candidate) in self._entries

    def entries(self) -> list[PoolEntry]:
        """All evaluations, in the order they were made."""
        self._refresh()
        return list(self._entries.values())

    def best(self, count: int = 1) -> list[PoolEntry]:
        """The best evaluations, best first."""
        return sorted(self.entries(), key=lambda entry: -entry.value)[:count]

    def _folded(self, candidate: Candidate) -> str:
        if self._key is None:
            return candidate.key
        if candidate.key not in self._keys:
            self._keys[candidate.key] = self._key(candidate)
        return self._keys[candidate.key]

    def _refresh(self) -> None:
        import optuna

        finished = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        for trial in finished[self._seen :]:
            candidate = Candidate.from_document(json.loads(trial.user_attrs["candidate"]))
            key = self._folded(candidate)
            if key not in self._entries:  # two workers may have had the same idea
                self._entries[key] = PoolEntry(candidate, float(trial.value), trial.user_attrs["origin"])
        self._seen = len(finished)


def _opened(storage: str | Path | None) -> Any:
    if storage is None or "://" in str(storage):
        return storage
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file = user_path(storage)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        with file.open("rb") as stream:
            first = stream.readline(1 << 16)
        if first and b'"op_code"' not in first:
            raise FewstepError(f"{file} is no journal of Optuna", hint="Name a new file.")
    return JournalStorage(JournalFileBackend(str(file)))
