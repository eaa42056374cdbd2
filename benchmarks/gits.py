"""How long the searches without a search take: GITS from a teacher trajectory, and the truncated grids.

    python benchmarks/gits.py --output results/gits.json

For each model of `testbeds.py`: seconds to follow 60 evaluations of the teacher on 32 items, to choose the times of 3
to 20 evaluations at once, and to build a plan on them. The truncated grid needs no network at all.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from testbeds import TESTBEDS, Testbed

from fewstep.files import write_json
from fewstep.process import VPDiscrete
from fewstep.runs import environment
from fewstep.schedules import Trajectory, gits
from fewstep.solvers import SOLVERS, grids

EVALUATIONS, ROWS, ITEMS = (3, 4, 5, 6, 8, 10, 15, 20), 60, 32


def measure(bed: Testbed) -> dict[str, Any]:
    """Seconds of each part."""
    begun = time.perf_counter()
    teacher = SOLVERS["unipc"](bed.process, bed.prediction, grids.uniform(bed.process, ROWS))
    conditions = bed.conditions(ITEMS, False)
    trajectory = Trajectory.follow(teacher, bed.bind(conditions), seeds=range(ITEMS), shape=bed.shape)
    followed = time.perf_counter()
    chosen = gits(trajectory, EVALUATIONS)
    done = time.perf_counter()
    for rows in chosen.values():
        times = [float(teacher.rows[k].time) for k in rows]
        SOLVERS["unipc"](bed.process, bed.prediction, grids.given(times))
    built = time.perf_counter()
    found = {"teacher": followed - begun, "choice": done - followed, "plans": built - done, "all": built - begun}
    if isinstance(bed.process, VPDiscrete):
        before = time.perf_counter()
        for steps in (5, 6, 8):
            SOLVERS["dpm_solver_pp_2m"](bed.process, bed.prediction, grids.truncated(bed.process, steps))
        found["truncated"] = time.perf_counter() - before
    return {name: round(seconds, 3) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/gits.json")
    options = parser.parse_args()
    seconds = {name: measure(make()) for name, make in TESTBEDS.items()}
    result = {"environment": environment(), "rows": ROWS, "items": ITEMS, "evaluations": list(EVALUATIONS)}
    write_json(options.output, result | {"seconds": seconds})
    print(seconds)


if __name__ == "__main__":
    main()
