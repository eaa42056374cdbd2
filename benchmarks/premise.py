"""Where is there something to repair? Few-step students x bits x steps, before any search.

    python benchmarks/premise.py --student lcm-g8=runs/lcm-g8 --folder runs/premise
    python benchmarks/premise.py --student digits-dmd2=runs/digits-dmd2/artifacts/pipeline
    python benchmarks/premise.py --prompts 24 --schemes w4a8 --output quick.json

Every system draws the same held-out prompts and seeds. Distances to the real emoji of the held-out combinations on two
feature networks and on small pictures, the judge, diversity between the seeds (all as in `fewstep run q-sched`), and
two measures of saturation: the second moment of the pictures in [-1, 1], and their colour (largest minus smallest
channel of a pixel). Students of digits draw every class in turn; they are compared with held-out real digits, and
judged by whether a classifier sees the class that was asked for. The null compares real pictures with real ones. A
student that follows a plan of its own is measured at its steps alone; `--also NAME=STEPS` adds a number of steps for
one student. A killed run goes on where it stopped; students and steps may be added later.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from students import FULL, Student, drawn
from torch import Tensor

from fewstep.data import load_emoji, load_mnist
from fewstep.data.prompts import load_prompts
from fewstep.files import write_json
from fewstep.images import as_float
from fewstep.jobs.context import seeds_for, slug, tensor_unit
from fewstep.metrics import evaluate, load_features
from fewstep.metrics.classifier import load_classifier
from fewstep.metrics.intervals import mean_interval
from fewstep.rewards import load_reward
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.zoo import placed, shipped

SCHEMES = (FULL, "w8a8", "w4a8", "w4a4", "w3a8")
STEPS = (1, 4)
DIGITS = 500
"""Real digits that students of digits are compared with; no student has seen them."""


def saturation(pictures: Tensor) -> dict[str, Tensor]:
    """Second moment about middle grey and mean colour of each picture (n, 3, H, W), as (n,) each."""
    images = as_float(pictures).double()
    return {
        "second moment": (2 * images - 1).square().flatten(1).mean(1),
        "colour": (images.amax(1) - images.amin(1)).flatten(1).mean(1),
    }


def pictures_of(run: Run, student: Student, scheme: str, steps: int, prompts: list[Any], seeds: list[int]) -> Tensor:
    """Pictures (S, P, 3, H, W) of a system, drawn once."""

    def draw() -> dict[str, Tensor]:
        sampler = student.sampler(scheme)
        plan = student.plan(steps, sampler)
        return {
            "images": torch.stack(
                [drawn(sampler, plan, prompts, seeds_for("evaluation", s, len(prompts))) for s in seeds]
            )
        }

    return tensor_unit(run, f"{slug(student.name)}/{slug(scheme)}-{steps}", draw)["images"]


def measured(images: dict[str, Tensor], student: Student, prompts: list[Any]) -> dict[str, Any]:
    """All numbers of the systems of one student at one number of steps, differences to full precision included."""
    if student.of_classes:
        own, judge = f"classifier:{shipped('mnist-features')}", load_classifier(shipped("mnist-features"))
        reference = load_mnist().images[:DIGITS]
    else:
        own, judge = placed("clip:emoji-judge"), load_reward(placed("clip:emoji-judge"))
        reference = load_emoji("evaluation").images
    features = [load_features(spec) for spec in (own, "random", "pixels")]
    found = evaluate(images, reference, prompts, features, judge, paired_to=FULL)
    for name, pictures in images.items():
        by_seed = [saturation(seed) for seed in pictures]
        for key in by_seed[0]:
            found["systems"][name][key] = mean_interval(torch.stack([s[key] for s in by_seed]).mean(0)).as_dict()
    for key, values in saturation(reference).items():
        found["null"][key] = mean_interval(values).as_dict()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", action="append", default=[], metavar="NAME=FOLDER", help="beside the shipped one")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES[1:]))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--also", action="append", default=[], metavar="NAME=STEPS", help="further steps of a student")
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102])
    parser.add_argument("--output", type=Path, default=Path("results/premise.json"))
    parser.add_argument("--folder", type=Path, default=None, help="keeps what is drawn; a temporary one unless given")
    given = parser.parse_args()
    settings = {"prompts": given.prompts, "seeds": given.seeds}
    run = Run(given.folder or Path(tempfile.mkdtemp()) / "premise", settings, quiet=True)
    rows = []
    for student in map(Student, ["emoji-student", *given.student]):
        digits = [number % 10 for number in range(given.prompts)]
        prompts: list[Any] = digits if student.of_classes else load_prompts("emoji:evaluation", given.prompts)
        also = [int(steps) for name, _, steps in (text.partition("=") for text in given.also) if name == student.name]
        for steps in [*given.steps, *also]:
            schemes = [FULL, *given.schemes]
            if not student.draws_in(steps):
                continue
            images = {scheme: pictures_of(run, student, scheme, steps, prompts, given.seeds) for scheme in schemes}
            unit = f"{slug(student.name)}/measured-{steps}-{slug('-'.join(given.schemes))}"
            found = run.unit(unit, partial(measured, images, student, prompts))
            rows.append({"student": student.name, "steps": steps, **found})
            for scheme, row in found["systems"].items():
                told = ", ".join(f"{metric} {value['mean']:.4f}" for metric, value in row.items())
                print(f"{student.name}, {steps} steps, {scheme}: {told}", flush=True)
    write_json(given.output, {"settings": settings, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
