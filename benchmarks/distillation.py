"""Distillation methods on one teacher: 1, 2 and 4 steps, equal budgets of network passes, several seeds.

    python benchmarks/distillation.py --output results/distillation.json

The same code as `fewstep bench distill`, with the settings of the published numbers: teacher `mnist-dit`, quality in
the features of `mnist-features` against fresh samples of the teacher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fewstep.files import write_json
from fewstep.jobs.distill.leaderboard import Leaderboard, compete

EVALUATION = ("evaluation.features=[classifier:mnist-features, random]", "evaluation.items=200")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="results/distillation.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-distill"))
    parser.add_argument("--methods", default="", help="names with commas; the main ones unless given")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=200_000)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()
    contest = Leaderboard(
        methods=tuple(name for name in options.methods.split(",") if name),
        steps=tuple(options.steps),
        seeds=tuple(options.seeds),
        budget=options.budget,
        guidance=options.guidance,
        learning_rate=options.learning_rate,
        overrides=(*EVALUATION, "evaluation.reference=400", "data.count=1024"),
    )
    write_json(options.output, compete(contest, options.runs))


if __name__ == "__main__":
    main()
