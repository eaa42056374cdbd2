"""One process and two, one thread each, on the search and on the evaluation of the demo; 8 and 64 by simulation.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --repeats 1 --set evaluation.count=64 --set search.budget=24 --output quick.json

Measured: the command itself, alone and under torchrun, taking turns; seconds of a phase are those between two events of
the log of the run. Simulated: one process notes the CPU seconds of every piece (a batch of prompts and seeds) and which
pieces are known at one time; what lies between pieces every process does for itself. Workers then take the pieces of a
round in order, each when it is free. The measurement wants a machine that does nothing else: `load` says what it was.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import recipes
from fewstep.files import read_json, write_json
from fewstep.jobs.q_sched import run as run_q_sched
from fewstep.runs import Run
from fewstep.runs.environment import environment

PHASES = {"search": ("quantize", "verdict"), "evaluation": ("verdict", "evaluate")}
"""The units that stand before each phase and at its end."""
SIMULATED = (1, 2, 8, 64)


class NotedRun(Run):
    """A run of one process that notes which pieces could be made side by side, and what each takes."""

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        super().__init__(path, recipe, quiet=True)
        self.pieces: dict[str, Tensor] = {}
        self.rounds: list[tuple[float, list[float]]] = []  # (CPU seconds so far, those of every piece)
        self.ends: dict[str, float] = {}

    def unit(self, name: str, compute: Callable[[], Any], **how: Any) -> Any:
        """The unit, and when it ended."""
        found = super().unit(name, compute, **how)
        self.ends[name] = time.process_time()
        return found

    def ahead(self, name: str, work: Mapping[str, Callable[[], Tensor]]) -> None:
        """Make the pieces now, as several processes do."""
        if work:
            self.each(name, work)

    def each(self, name: str, work: Mapping[str, Callable[[], Tensor]]) -> list[Tensor]:
        """The pieces, with the time of those that are new."""
        taken = []
        for key in [key for key in work if f"{name}/{key}" not in self.pieces]:
            begun = time.process_time()
            self.pieces[f"{name}/{key}"] = work[key]()
            taken.append(time.process_time() - begun)
        if taken:
            self.rounds.append((time.process_time(), taken))
        return [self.pieces[f"{name}/{key}"] for key in work]


def makespan(pieces: Sequence[float], workers: int) -> float:
    """When the last piece is done, if every worker takes the next one as soon as it is free."""
    free = [0.0] * workers
    for piece in pieces:
        heapq.heappush(free, heapq.heappop(free) + piece)
    return max(free)


def simulated(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of each phase at each number of processes, from the pieces of one."""
    recipe = recipes.load("q-sched", overrides)
    with NotedRun(folder, recipe.plain()) as run:
        run_q_sched(recipe, run)
    found = {}
    for phase, (before, end) in PHASES.items():
        start, stop = run.ends[before], run.ends[end]
        rounds = [taken for at, taken in run.rounds if start < at <= stop]
        pieces = [piece for taken in rounds for piece in taken]
        serial = stop - start - sum(pieces)
        seconds = {n: serial + sum(makespan(taken, n) for taken in rounds) for n in SIMULATED}
        found[phase] = {
            "seconds": {str(n): value for n, value in seconds.items()},
            "speedup": {str(n): seconds[1] / value for n, value in seconds.items()},
            "pieces": len(pieces), "rounds": len(rounds), "piece_median": statistics.median(pieces),
            "between_pieces": serial,
        }  # fmt: skip
    return found


def measured(overrides: list[str], folder: Path, processes: int) -> dict[str, float]:
    """Seconds of each phase of the command in so many processes of one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] * (processes > 1)
    told = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, *launcher, "-m", "fewstep", "run", "q-sched", "--out", str(folder), *told]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = {event["unit"]: event["time"] for event in events if event["event"] == "finished"}
    return {phase: ends[end] - ends[before] for phase, (before, end) in PHASES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--output", default="results/scaling.json")
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        expected = simulated(told.overrides, Path(place) / "noted")
        for repeat in range(told.repeats):
            for processes in (1, 2):
                folder = Path(place) / f"{processes}-{repeat}"
                begun = os.getloadavg()[0]
                seconds = measured(told.overrides, folder, processes)
                rows.append({"processes": processes, "repeat": repeat, "load": begun, **seconds})
                print(rows[-1], flush=True)
        results = [read_json(Path(place) / f"{n}-0" / "results.json") for n in (1, 2) if told.repeats]
    equal = len({json.dumps([found["evaluation"], found["search"]], sort_keys=True) for found in results}) <= 1
    speedup = {}
    for phase in PHASES:
        pairs = [[row[phase] for row in rows if row["repeat"] == k] for k in range(told.repeats)]
        each = [one / two for one, two in pairs]
        speedup[phase] = {"median": statistics.median(each), "each": each} if each else {}
    write_json(
        told.output,
        {
            "environment": environment(), "overrides": told.overrides, "measured": rows, "speedup": speedup,
            "same_numbers": equal, "simulated": expected,
        },
        over="all",
    )  # fmt: skip


if __name__ == "__main__":
    main()
