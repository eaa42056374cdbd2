"""Methods side by side: one teacher, 1, 2 and 4 steps, equal budgets of network passes, several seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fewstep.distillation.method import find_preset, options_of, presets, stages_over
from fewstep.errors import FewstepError, nearest
from fewstep.files import read_json, write_json
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.cost import passes_per_step
from fewstep.jobs.distill.job import run
from fewstep.jobs.distill.recipe import DistillRecipe
from fewstep.recipes.loader import resolve
from fewstep.runs import Run, environment

FIRST = ("dmd2", "lcm", "tdm", "sid", "pcm", "mean_flow", "progressive", "mmd_ddm")
"""What is compared unless methods are named; those that exist."""


@dataclass(frozen=True)
class Leaderboard:
    """What is held equal.

    Attributes:
        model: the teacher.
        methods: names; those of `FIRST` unless given.
        steps: of the students.
        seeds: of the trainings.
        budget: samples forward through any network during the training (a sample backward counts as two more).
        guidance: of the teacher, for the methods that take one.
        learning_rate: of all.
        batch: of all.
        overrides: of the recipe `distill`, the same for every method.
    """

    model: str = "mnist-dit"
    methods: tuple[str, ...] = ()
    steps: tuple[int, ...] = (1, 2, 4)
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: int = 200_000
    guidance: float = 1.0
    learning_rate: float = 1e-4
    batch: int = 32
    overrides: tuple[str, ...] = field(default=())

    def entries(self) -> list[tuple[str, int, int]]:
        """(method, steps, seed) of every training.

        Raises:
            FewstepError: an unknown method.
        """
        known = presets()
        for name in self.methods:
            if name not in known:
                raise FewstepError("unknown distillation method", value=name, hint=nearest(name, known))
        names = self.methods or tuple(name for name in FIRST if name in known)
        return [
            (name, steps, seed)
            for name in names
            for steps in self.steps
            for seed in self.seeds
            if steps == 1 or "steps" in options_of(name)
        ]


def compete(contest: Leaderboard, out: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every entry in its own run directory under `out`, and put the numbers together.

    Killed, the same call goes on: finished entries are read, not run.
    """
    rows = []
    for name, steps, seed in contest.entries():
        place = out / f"{name}-{steps}-{seed}"
        try:
            rows.append(_entry(contest, name, steps, seed, place))
        except FewstepError as error:
            rows.append({"method": name, "steps": steps, "seed": seed, "failed": str(error)})
        say(_line(rows[-1]))
    return {
        "environment": environment(),
        "contest": {**vars(contest), "methods": sorted({row["method"] for row in rows})},
        "entries": rows,
        "summary": summary(rows),
    }


def _entry(contest: Leaderboard, name: str, steps: int, seed: int, place: Path) -> dict[str, Any]:
    counted = 8 if find_preset(name).staged else 2
    recipe = _recipe(contest, name, steps, seed, counted, place)
    cost = place.with_name(f"{place.name}-cost.json")
    if not cost.exists():
        with Run(place.with_name(f"{place.name}-cost"), recipe.plain(), quiet=True, fresh=True) as started:
            context = DistillContext.open(recipe, started)
            context.check()
            write_json(cost, {"passes_per_step": passes_per_step(context, counted)})
    per_step = read_json(cost)["passes_per_step"]
    updates = max(1, int(contest.budget / per_step))
    recipe = _recipe(contest, name, steps, seed, updates, place)
    with Run(place, recipe.plain(), quiet=True) as started:
        run(recipe, started)
        first = next(event for event in started.events() if event["event"] == "started")
    results = read_json(place / "results.json")
    systems = results["evaluation"]["systems"]
    return {
        "method": name,
        "steps": steps,
        "seed": seed,
        "updates": updates,
        "passes_per_update": per_step,
        "commit": first["commit"],  # of the training: a resumed contest may be younger
        "seconds": results["training"]["seconds"],
        "bytes_before_activations": sum(results["training"]["memory"].values()),
        "health": results["health"],
        "student": {metric: value["mean"] for metric, value in systems["student"].items() if value},
        "teacher_few": {metric: value["mean"] for metric, value in systems["teacher, as few steps"].items() if value},
        "teacher": {metric: value["mean"] for metric, value in systems["teacher"].items() if value},
    }


def _recipe(contest: Leaderboard, name: str, steps: int, seed: int, updates: int, place: Path) -> DistillRecipe:
    guidance = contest.guidance if find_preset(name).guidance else 1.0
    train = {"steps": updates, "batch": contest.batch, "learning_rate": contest.learning_rate, "seed": seed}
    values = {
        "kind": "distill",
        "model": contest.model,
        "method": name,
        "steps": steps,
        "guidance": guidance,
        "options": stages_over(name, updates, **({"steps": steps} if "steps" in options_of(name) else {})),
        "train": {**train, "checkpoint_every": max(1, updates // 4)},
        # one store for all entries: what the teacher draws for data is shared, and counted once
        "data": {"folder": str(place.parent / f"teacher-{guidance:g}")},
    }
    recipe = resolve(values, contest.overrides)
    assert isinstance(recipe, DistillRecipe)
    return recipe


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every metric, one line per method and number of steps."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "failed" not in row:
            groups.setdefault((row["method"], row["steps"]), []).append(row)
    lines = []
    for (name, steps), some in groups.items():
        metrics = {
            metric: {
                "mean": fmean(values),
                "deviation": stdev(values) if len(values) > 1 else None,
            }
            for metric in some[0]["student"]
            if (values := [row["student"][metric] for row in some])
        }
        lines.append(
            {
                "method": name,
                "steps": steps,
                "seeds": len(some),
                "updates": some[0]["updates"],
                "seconds": fmean(row["seconds"] for row in some),
                "bytes_before_activations": some[0]["bytes_before_activations"],
                "metrics": metrics,
                "teacher_few": some[0]["teacher_few"],
            }
        )
    return lines


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['method']}, {row['steps']} steps, seed {row['seed']}"
    if "failed" in row:
        return f"{name}: failed: {row['failed']}"
    metric = next((m for m in row["student"] if "frechet" in m), next(iter(row["student"])))
    few = row["teacher_few"][metric]
    return f"{name}: {metric} {row['student'][metric]:.4g} (teacher {few:.4g}), {row['seconds']:.0f} s"
