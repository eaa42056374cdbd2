"""The trajectory store: states of the teacher on its way from noise to data, with the times that they truly have.

FOLDER/header.json                what the trajectories are; equal for every writer
FOLDER/shards/00000.safetensors   `path` (n, K, ...), `condition` (n,) numbers of the header's list, `seed` (n,)

Every shard is whole or absent. Workers, on one machine or on several that share the folder, take shards that nobody
else is at work on; a killed worker leaves its shard to the next one. What a shard holds depends on its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json, write_tensors
from fewstep.process import Process

IN_MEMORY = 1 << 30
"""Stores up to so many bytes are read once; larger ones from their files at every step."""


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds.

    Attributes:
        times: process times of the K states of a trajectory, noisiest first; 0 is the data.
        process: what the times belong to.
        model: whose trajectories they are (fingerprint of the weights).
        solver: what solved them.
        guidance: scale that the outputs included; 1 is without.
        shape: of one state.
        count: number of trajectories.
        shard: how many lie in one file.
        seed: of the first; trajectory i has seed + i.
        conditions: prompts or class labels; trajectory i has number i modulo their count. Empty for an unconditional
            teacher.
        dtype: of the states in the files.
        format: of the folder.

    Raises:
        FewstepError: times that do not fall, or no trajectories.
    """

    times: tuple[float, ...]
    process: str
    model: str
    solver: str
    guidance: float
    shape: tuple[int, ...]
    count: int
    shard: int = 256
    seed: int = 0
    conditions: tuple[Any, ...] = ()
    dtype: str = "float32"
    format: int = 1

    def __post_init__(self) -> None:
        if len(self.times) < 2 or any(b >= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise FewstepError("a trajectory needs two falling times at least", value=self.times)
        if self.count < 1 or self.shard < 1:
            raise FewstepError("a store needs at least one trajectory", value=(self.count, self.shard))

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.count // self.shard)

    def members(self, shard: int) -> range:
        """Numbers of the trajectories in one file."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    def condition(self, member: int) -> int:
        """Which condition a trajectory has; -1 for none."""
        return member % len(self.conditions) if self.conditions else -1


Solve = Callable[[Sequence[int], Sequence[int]], Tensor]
"""(seeds, numbers of conditions) -> states (n, K, ...) at the header's times."""


def write_store(
    folder: str | Path, header: StoreHeader, solve: Solve, advance: Callable[[int], None] | None = None
) -> int:
    """Write the shards that are absent and that no other worker is writing.

    Args:
        folder: of the store.
        header: what it holds.
        solve: the teacher.
        advance: takes the number of trajectories of each shard that is done, those found done included.

    Returns:
        How many shards this worker wrote.

    Raises:
        FewstepError: the folder holds another store, or `solve` returned another shape.
    """
    place, samples = Path(folder), 0
    _claim(place, header)
    waiting = list(range(header.shards))
    for shard in waiting:
        file, members = _file(place, shard), header.members(shard)
        if not file.exists():
            try:
                with FileLock(place / "shards" / f"{shard:05d}.lock", timeout=0):
                    if not file.exists():
                        _make(file, header, members, solve)
                        samples += 1
            except Timeout:
                continue  # another worker's
        if advance is not None:
            advance(len(members))
    return samples


def missing(folder: str | Path) -> int:
    """Number of shards that are not there yet."""
    place = Path(folder)
    header = _read_header(place / "header.json")
    return sum(not _file(place, shard).exists() for shard in range(header.shards))


def _claim(place: Path, header: StoreHeader) -> None:
    """Write the header, or check that the one that is there is equal."""
    (place / "shards").mkdir(parents=True, exist_ok=True)
    file = place / "header.json"
    with FileLock(place / "header.lock"):
        if not file.exists():
            others = [p.name for p in place.rglob("*") if p.is_file() and p.suffix != ".lock"]
            if others:
                raise FewstepError(
                    f"{place} holds files that are no store", value=others[:5], hint="Give a new folder."
                )
            write_json(file, asdict(header))
            return
    found = _read_header(file)
    changed = [name for name, value in vars(header).items() if getattr(found, name) != value]
    if changed:
        raise FewstepError(
            f"{place} is a store with other {', '.join(changed)}",
            value={name: getattr(found, name) for name in changed if name != "conditions"},
            hint="Give another folder, or remove this one.",
        )


def _make(file: Path, header: StoreHeader, members: range, solve: Solve) -> None:
    seeds = [header.seed + i for i in members]
    conditions = [header.condition(i) for i in members]
    path = solve(seeds, conditions)
    wanted = (len(members), len(header.times), *header.shape)
    if tuple(path.shape) != wanted:
        raise FewstepError(f"trajectories must have shape {wanted}", value=tuple(path.shape))
    if not bool(path.isfinite().all()):
        raise FewstepError("the teacher's trajectories are not finite", hint="Use float32 or bfloat16.")
    tensors = {
        "path": path.to(getattr(torch, header.dtype)),
        "condition": torch.tensor(conditions),
        "seed": torch.tensor(seeds),
    }
    write_tensors(file, tensors)


@dataclass(frozen=True, eq=False)
class TrajectoryStore:
    """A finished store, read at random: which rows a step sees depends on its generator alone."""

    folder: Path
    header: StoreHeader

    @classmethod
    def open(
        cls, folder: str | Path, *, times: Sequence[float] | None = None, process: Process | None = None
    ) -> TrajectoryStore:
        """Open a store whose shards are all there.

        Args:
            times: what the caller needs its trajectories to be at.
            process: likewise.

        Raises:
            FewstepError: no store, unfinished, or one of other times or another process.
        """
        place = Path(folder)
        header = _read_header(place / "header.json")
        absent = missing(place)
        if absent:
            raise FewstepError(
                f"{place} lacks {absent} of {header.shards} shards", hint="Run the command that makes it once more."
            )
        if process is not None and header.process != repr(process):
            raise FewstepError(f"{place} belongs to the process {header.process}", value=repr(process))
        if times is not None and not _agree(header.times, times):
            raise FewstepError(
                f"{place} has other times",
                value=[round(t, 4) for t in header.times],
                hint=f"This method needs {[round(float(t), 4) for t in times]}: make a store at those.",
            )
        return cls(place, header)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (size, K, ...) float32 and the numbers of their conditions (size,).

        Small stores: any rows. Large ones: neighbours from one shard, which is one read from the disk; neighbours are
        as independent as any two trajectories.
        """
        if self._bytes <= IN_MEMORY:
            path, condition = self._all
            rows = torch.randint(len(path), (size,), generator=generator)
            return path[rows].float(), condition[rows]
        shard = int(torch.randint(self.header.shards, (1,), generator=generator))
        count = len(self.header.members(shard))
        first = int(torch.randint(count, (1,), generator=generator))
        rows = (first + torch.arange(size)) % count
        with safe_open(_file(self.folder, shard), "pt") as tensors:
            low, high = int(rows.min()), int(rows.max()) + 1
            path = tensors.get_slice("path")[low:high][rows - low]
            return path.float(), tensors.get_tensor("condition")[rows]

    def ends(self) -> tuple[Tensor, Tensor]:
        """All final states (N, ...) float32 with the numbers of their conditions (N,): the teacher's own data set."""
        parts, conditions = [], []
        for shard in range(self.header.shards):
            with safe_open(_file(self.folder, shard), "pt") as tensors:
                parts.append(tensors.get_slice("path")[:, -1:].squeeze(1).float())
                conditions.append(tensors.get_tensor("condition"))
        return torch.cat(parts), torch.cat(conditions)

    @property
    def _bytes(self) -> int:
        numbers = self.header.count * len(self.header.times)
        for side in self.header.shape:
            numbers *= side
        return numbers * getattr(torch, self.header.dtype).itemsize

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        parts = []
        for shard in range(self.header.shards):
            with safe_open(_file(self.folder, shard), "pt") as tensors:
                parts.append((tensors.get_tensor("path"), tensors.get_tensor("condition")))
        return torch.cat([p for p, _ in parts]), torch.cat([c for _, c in parts])


def _read_header(file: Path) -> StoreHeader:
    if not file.exists():
        raise FewstepError("no trajectory store here", value=str(file.parent), hint="Make one first.")
    found = read_json(file)
    try:
        lists = {name: tuple(found[name]) for name in ("times", "shape", "conditions")}
        process = found["process"].replace("told=", "time_conditioning=")  # as the option was called before
        return StoreHeader(**{**found, **lists, "process": process})
    except (TypeError, KeyError, AttributeError) as error:
        raise FewstepError(f"{file} is no header of a trajectory store ({error})", hint="Make it anew.") from error


def _file(place: Path, shard: int) -> Path:
    return place / "shards" / f"{shard:05d}.safetensors"


def _agree(a: Sequence[float], b: Sequence[float]) -> bool:
    if len(a) != len(b):
        return False
    scale = max(abs(float(t)) for t in a)
    return all(abs(float(x) - float(y)) <= 1e-6 * scale for x, y in zip(a, b, strict=True))
