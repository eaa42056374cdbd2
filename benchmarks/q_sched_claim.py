"""Is a student in low bits, tuned by Q-Sched, nearer to real pictures than the same student untuned in full precision?

    python benchmarks/q_sched_claim.py --student emoji-student-guided --student emoji-student-g5=runs/student-g5 \\
        --folder runs/claim
    python benchmarks/q_sched_claim.py --prompts 24 --seeds 101 --budget 12 --output quick.json

One run of `fewstep run q-sched` per student and seed of the search (other noise on the calibration prompts, another
seed of the searcher), with the default objective. Full precision gets the same search; least squares and PTQD stand
beside. After these, the runs of the first seed of the search go on with SVDQuant and MixDQ at equal bytes of the file,
Q-Sched on top of both, and the unguided student in the same scheme. Results are written after each part; a killed run
goes on where it stopped, and seeds of the evaluation may be added later.

`reached`: the tuned student in low bits is at least 15 % nearer (Frechet distance to real pictures on the judge's
features) than the untuned one in full precision, the interval of the change does not reach 0, and recall does not fall
by more than its interval. `visible` says of each feature network whether it sees the fault of the untuned student at
all: the unbiased MMD^2 of full precision lies, with its interval, above that of real pictures from real ones.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from fewstep.files import read_json, write_json
from fewstep.jobs.q_sched import run as execute
from fewstep.jobs.q_sched.names import FULL, FULL_TUNED, LOW, LOW_TUNED
from fewstep.recipes import load
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.zoo import SHIPPED

WANTED = 0.15
"""Share of its distance by which the tuned student has to be nearer."""
AGAINST = ["ptqd", "svdquant", "mixdq"]
EMOJI = {
    "search.objective": "teacher", "search.features": "clip:emoji-clip", "search.pictures": "emoji",
    "search.prompts": "emoji:calibration", "evaluation.prompts": "emoji:evaluation", "evaluation.pictures": "emoji",
    "evaluation.judge": "clip:emoji-judge", "evaluation.features": ["clip:emoji-judge", "random", "pixels"],
    "evaluation.teacher": "emoji-teacher", "evaluation.teacher_steps": 20,
}  # fmt: skip
"""What `auto` means for the shipped students, also for those in a folder; and a third feature network."""


def recipe_of(model: str, number: int, whole: bool, given: argparse.Namespace) -> Any:
    """The recipe of one run; number: of the search's seed; whole: with everything that stands beside."""
    return load("q-sched", chosen={
        **EMOJI, "model": model, "scheme": given.scheme, "batch": 64, "against": AGAINST if whole else AGAINST[:1],
        "search.seed": number, "search.seeds": [2 * number + 1, 2 * number + 2], "search.budget": given.budget,
        "evaluation.count": given.prompts, "evaluation.seeds": given.seeds,
        "evaluation.beside": ["emoji-student"] if whole else [],
    })  # fmt: skip


def executed(folder: Path, recipe: Any) -> dict[str, Any]:
    """What a run found. The folder belongs to its search: systems and seeds of the evaluation may be added."""
    kept = {key: value for key, value in recipe.plain().items() if key in ("model", "scheme", "steps", "search")}
    with Run(folder, kept) as run:
        written = folder / "results.json"
        if written.exists() and read_json(written)["recipe"] != recipe.resolved().plain():
            (folder / "units" / "evaluate.json").unlink(missing_ok=True)  # pictures are kept
        execute(recipe, run)
    found: dict[str, Any] = read_json(written)
    return found


def row_of(name: str, number: int, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A run as the results keep it."""
    evaluation = {k: v for k, v in found["evaluation"].items() if k not in ("prompts_used", "differences")}
    told = {f.parent.name: read_json(f) for f in sorted(folder.glob("artifacts/quantize*/quantization.json"))}
    weights = {
        way: {key: report[key] for key in ("scheme", "bits_per_weight", "rank", "output_sqnr") if key in report}
        for way, report in told.items()
    }
    kept = ("search", "verdict", "coefficients", "quantization", "bytes", "seconds")
    return {
        "student": name, "search seed": number, "reached": reached(evaluation), "evaluation": evaluation,
        "weights": weights, **{key: found[key] for key in kept},
    }  # fmt: skip


def reached(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the claim says, number by number: changes are those of the tuned student in low bits."""
    systems, null, pairs = evaluation["systems"], evaluation["null"], evaluation["comparisons"]
    change, networks = pairs[f"{LOW_TUNED} - {FULL}"], [m[4:] for m in systems[FULL] if m.startswith("mmd:")]
    nearer = {n: share(change[f"frechet:{n}"], systems[FULL][f"frechet:{n}"]["mean"]) for n in networks}
    judged = nearer[networks[0]]
    kept = all(change[f"recall:{n}"]["high"] >= 0 for n in networks)
    return {
        "reached": judged["mean"] <= -WANTED and judged["high"] < 0 and kept,
        "wanted": -WANTED,
        "nearer": nearer,
        "recall kept": kept,
        "visible": {n: systems[FULL][f"mmd:{n}"]["low"] > null[f"mmd:{n}"]["high"] for n in networks},
        "tuned full precision - tuned low bits": {
            n: share(pairs[f"{LOW_TUNED} - {FULL_TUNED}"][f"frechet:{n}"], -1.0) for n in networks
        },
        "tuned - untuned low bits": {
            n: share(pairs[f"{LOW_TUNED} - {LOW}"][f"frechet:{n}"], systems[LOW][f"frechet:{n}"]["mean"])
            for n in networks
        },
    }


def share(change: dict[str, float], whole: float) -> dict[str, float]:
    """A change with its interval as a share of something; of -1: the change the other way round."""
    ends = sorted(change[end] / whole for end in ("low", "high"))
    return {"mean": change["mean"] / whole, "low": ends[0], "high": ends[1]}


def trained(model: str) -> dict[str, Any]:
    """How a student in a folder was made."""
    if model in SHIPPED:
        return {"shipped": True}
    told = read_json(Path(model) / "training.json")
    return {key: told[key] for key in ("command", "commit", "seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", action="append", metavar="NAME[=FOLDER]")
    parser.add_argument("--scheme", default="w4a8")
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budget", type=float, default=48)
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--output", type=Path, default=Path("results/q-sched-claim.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps the runs; a temporary one unless given")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    named = [text.partition("=") for text in given.student or ["emoji-student-guided"]]
    students = {name: path or name for name, _, path in named}
    settings = {key: getattr(given, key) for key in ("scheme", "search_seeds", "budget", "prompts", "seeds")}
    made = {name: trained(model) for name, model in students.items()}
    rows: dict[str, dict[str, Any]] = {}
    parts = [*((number, False) for number in given.search_seeds), (given.search_seeds[0], True)]
    for (number, whole), (name, model) in itertools.product(parts, students.items()):
        place = folder / f"{name}-{number}"
        rows[place.name] = row_of(name, number, executed(place, recipe_of(model, number, whole, given)), place)
        print(f"{place.name}: {rows[place.name]['reached']}", flush=True)
        results = {"settings": settings, "students": made, "rows": list(rows.values()), "environment": environment()}
        write_json(given.output, results)


if __name__ == "__main__":
    main()
