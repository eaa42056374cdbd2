"""A schedule search, unit by unit: open, follow the teacher, search, compare on held-out items, report, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.jobs.pipeline_recipe import Conditions
from fewstep.jobs.search.baselines import diffusers_plans
from fewstep.jobs.search.recipe import ScheduleRecipe
from fewstep.jobs.search.report import tables, write_report
from fewstep.metrics import load_features
from fewstep.metrics.intervals import difference_interval, mean_interval
from fewstep.pipelines import (
    PipelineSampler,
    attach,
    backbone_of,
    identity_of,
    plan_of,
    process_of,
    save_pipeline,
    trace,
)
from fewstep.pipelines.conditions import conditions_of
from fewstep.pipelines.process import training_scheduler
from fewstep.plan import Plan
from fewstep.report.terminal import to_rich
from fewstep.runs import Run, environment
from fewstep.schedules import (
    DistributionMatch,
    ModelInfo,
    SearchResult,
    SearchTask,
    TeacherMatch,
    Trajectory,
    search_method,
)
from fewstep.schedules.objectives import Generate
from fewstep.schedules.tuning import Family, Problem, searcher
from fewstep.solvers import SOLVERS, grids
from fewstep.variants import prunable
from fewstep.zoo import placed

OWN, FOUND, SCALED = "the pipeline's own", "searched", "searched + Q-Sched"


def run(recipe: ScheduleRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/plan.json` (the schedule), `artifacts/pipeline` (a diffusers folder that follows it),
    every evaluation of the search, `results.json` and `report.html`.
    """
    recipe.check()
    job = _Job(recipe, run)
    found = job.search()
    plans = job.plans(found)
    numbers = job.compare(plans)
    pictures = job.pictures(plans, numbers)
    run.unit("pipeline", lambda: job.follow(plans), save=save_pipeline, load=lambda folder: None, artifact="pipeline")
    results = {
        "recipe": recipe.plain(),
        "environment": environment(),
        "search": found,
        "evaluation": numbers,
        "seconds": run.seconds(),
    }
    write_json(run.path / "results.json", results)
    if recipe.results:
        write_json(recipe.results, results)
    if not run.quiet:
        import rich

        rich.print(to_rich(tables(numbers)[0]))
    return write_report(run, recipe, results, plans, pictures)


class _Job:
    """What the units share: the pipeline, its process, the teacher's trajectory and the objective."""

    def __init__(self, recipe: ScheduleRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        if recipe.search.objective == "distribution":
            self.features = load_features(placed(recipe.search.features))  # may need a download: before all work
        self.pipe = recipe.opened()
        self.generator = PipelineSampler(self.pipe, recipe.guidance, dict(recipe.call), recipe.batch)
        process, prediction = process_of(self.pipe, **recipe.call)
        self.model = ModelInfo(process, prediction, blocks=len(prunable(backbone_of(self.pipe))))
        self.identity = identity_of(self.pipe, max(1.0, recipe.guidance))

    # --- the teacher ------------------------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> Plan:
        """The fine plan."""
        settings, process = self.recipe.teacher, self.model.process
        return SOLVERS[settings.solver](process, self.model.prediction, grids.uniform(process, settings.steps))

    @cached_property
    def trajectory(self) -> Trajectory:
        """Where the teacher goes on the search's items."""
        conditions, seeds = self.items

        def compute() -> dict[str, Tensor]:
            seen = trace(self.generator, self.teacher, conditions, seeds)
            return {"states": seen.states, "outputs": seen.outputs}

        seen = self.run.unit(
            "teacher", compute, save=_keep, load=read_tensors, artifact="teacher-trajectory.safetensors"
        )
        return Trajectory(self.teacher, seen["states"], seen["outputs"])

    @cached_property
    def items(self) -> tuple[list[Any] | None, list[int]]:
        """Conditions and seeds of the search."""
        count = self.recipe.search.items
        seeds = [2_000_003 * (self.recipe.search.seed + 1) + i for i in range(count)]
        return self._conditions(self.recipe.search.conditions, count, held_out=False), seeds

    def _conditions(self, wanted: Conditions, count: int, held_out: bool) -> list[Any] | None:
        return conditions_of(self.pipe, self.recipe.prompts(wanted, held_out), count)

    def _generate(self, conditions: list[Any] | None, seeds: list[int], output: str = "latent") -> Generate:
        def generate(plan: Plan, items: Sequence[int]) -> Tensor:
            some = None if conditions is None else [conditions[i] for i in items]
            return self.generator(plan, some, [seeds[i] for i in items], output=output)

        return generate

    # --- the search -------------------------------------------------------------------------------------------------

    @cached_property
    def objective(self) -> TeacherMatch | DistributionMatch:
        """What the search maximises."""
        settings = self.recipe.search
        if settings.objective == "teacher":
            return TeacherMatch(self._generate(*self.items), self.trajectory.final)
        generate = self._generate(*self.items, output="image")
        with torch.no_grad():
            reference = self.features(generate(self.teacher, range(settings.items)))
        return DistributionMatch(generate, self.features, reference, settings.items)

    def search(self) -> dict[str, Any]:
        """The schedule; its plan lies in `artifacts/plan.json`."""
        recipe, settings = self.recipe, self.recipe.search
        file = self.run.artifact("plan.json")

        def compute() -> dict[str, Any]:
            with self.run.progress(f"{settings.method}, {recipe.steps} steps", total=settings.budget) as advance:
                best, done = float("-inf"), 0

                def watch(spent: float, value: float) -> None:
                    nonlocal best, done
                    best = max(best, value)
                    advance(int(spent) - done, note=f"best {best:.4f}")
                    done = int(spent)

                task = SearchTask(
                    self.model, recipe.steps, self.objective, self.trajectory, settings.budget, settings.seed,
                    SOLVERS[settings.solver], storage=settings.storage or None, scratch=self.run.scratch("search"),
                    parts=frozenset(settings.parts), most_skipped=settings.most_skipped, watch=watch,
                )  # fmt: skip
                found = search_method(settings.method)(task)
            plan = found.plan.replace(identity=self.identity)
            plan.save(file)
            return self._spent(found) | {"history": [list(point) for point in found.history]}

        found = self.run.unit("search", compute)
        if settings.q_sched:
            found = found | {"q_sched": self._q_sched(Plan.load(file))}
        return found

    def _spent(self, found: SearchResult) -> dict[str, Any]:
        calls = found.spent * self.recipe.search.items * self.recipe.steps
        teacher = self.recipe.teacher.steps * self.recipe.search.items
        return {
            "value": found.value, "spent": found.spent, "network_calls": calls, "teacher_calls": teacher,
        }  # fmt: skip

    def _q_sched(self, plan: Plan) -> dict[str, Any]:
        """Two scalars per step on top of the schedule."""
        settings = self.recipe.search
        family = Family("ramp")

        def compute() -> dict[str, Any]:
            log = self.run.scratch("q-sched") / "scores.jsonl"
            problem = Problem(plan, family, self.objective, log=log)
            searcher(settings.searcher)(problem, settings.q_sched, settings.seed)
            outcome = problem.outcome()
            return {"theta": list(outcome.theta), "value": outcome.value, "spent": outcome.spent}

        found = self.run.unit("q-sched", compute)
        family.apply(plan, torch.tensor(found["theta"], dtype=torch.float64)).save(
            self.run.artifact("plan-q-sched.json")
        )
        return found

    def plans(self, found: Mapping[str, Any]) -> dict[str, Plan]:
        """Everything that is compared: what was found, what the pipeline does, what diffusers offers."""
        recipe = self.recipe
        plans = {FOUND: Plan.load(self.run.artifact("plan.json"))}
        if "q_sched" in found:
            plans[SCALED] = Plan.load(self.run.artifact("plan-q-sched.json"))
        try:
            own = plan_of(self.pipe, recipe.steps, guidance_scale=recipe.guidance or None, **recipe.call)
            plans[OWN] = own
        except FewstepError as error:
            self.run.say(f"The pipeline's own schedule is left out: {error}")
        if recipe.evaluation.baselines:
            shift = getattr(self.model.process, "shift", None)
            plans |= diffusers_plans(training_scheduler(self.pipe), recipe.steps, shift)
        return plans

    # --- the proof --------------------------------------------------------------------------------------------------

    def compare(self, plans: Mapping[str, Plan]) -> dict[str, Any]:
        """Distance from the teacher on held-out conditions and seeds; the best baseline is chosen on the search's own.

        Intervals are over conditions, seeds averaged.
        """
        settings = self.recipe.evaluation
        measured = {}
        with self.run.progress("held-out comparison", total=len(plans)) as advance:
            for name, plan in plans.items():
                advance(1)
                try:
                    measured[name] = self.run.unit(f"measure-{_slug(name)}", partial(self._measured, plan))
                except FewstepError as error:
                    if name in (FOUND, SCALED):
                        raise
                    self.run.say(f"[dim]{name} cannot run in this pipeline and is left out: {error}[/dim]")
        errors = {name: torch.tensor(m["errors"], dtype=torch.float64) for name, m in measured.items()}
        value = {name: m["value"] for name, m in measured.items()}
        baselines = [n for n in measured if n not in (FOUND, SCALED) and bool(errors[n].isfinite().all())]
        best = max(baselines, key=lambda n: value[n], default=None)
        ours = [n for n in (FOUND, SCALED) if n in plans]
        rows = {n: mean_interval(e.mean(0)).as_dict() | {"seeds": e.mean(1).tolist()} for n, e in errors.items()}
        return {
            "metric": "root mean square distance from the teacher's result over its standard deviation",
            "items": settings.items,
            "seeds": settings.seeds,
            "teacher_steps": self.recipe.teacher.steps,
            "systems": rows,
            "on_search_items": value,
            "best_baseline": best,
            "differences": {
                f"{n} - {best}": difference_interval(errors[n].mean(0), errors[best].mean(0)).as_dict()
                for n in ours
                if best is not None
            },
        }

    def _measured(self, plan: Plan) -> dict[str, Any]:
        """The objective on the search's items, and held-out distances from the teacher (seeds, items)."""
        with torch.no_grad():
            value = float(self.objective(plan, range(self.objective.size)).mean())
            drawn = torch.stack([self.generator(plan, self._unseen, some, output="latent") for some in self._fresh])
        unit = self.truth.std()
        away = (drawn.cpu() - self.truth).flatten(2).square().mean(2).sqrt() / unit
        return {"value": value, "errors": away.tolist()}

    @cached_property
    def _unseen(self) -> list[Any] | None:
        settings = self.recipe.evaluation
        return self._conditions(settings.conditions, settings.items, held_out=True)

    @cached_property
    def _fresh(self) -> list[list[int]]:
        settings = self.recipe.evaluation
        return [[1_000_003 * s + i for i in range(settings.items)] for s in settings.seeds]

    @cached_property
    def truth(self) -> Tensor:
        """The teacher's results on held-out conditions and seeds, (S, P, ...)."""

        def compute() -> dict[str, Tensor]:
            with torch.no_grad():
                drawn = [self.generator(self.teacher, self._unseen, some, output="latent") for some in self._fresh]
            return {"states": torch.stack(drawn).cpu()}

        return self.run.unit("truth", compute, save=_keep, load=read_tensors, artifact="truth.safetensors")["states"]

    def pictures(self, plans: Mapping[str, Plan], numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        """The same held-out items drawn by the main systems, (P, 3, H, W) each; empty for what is not an image."""
        count = min(self.recipe.evaluation.pictures, self.recipe.evaluation.items)
        if not count:
            return {}
        picks = [i * self.recipe.evaluation.items // count for i in range(count)]
        some = None if self._unseen is None else [self._unseen[i] for i in picks]
        seeds = [self._fresh[0][i] for i in picks]
        shown = {n: plans[n] for n in (FOUND, SCALED, numbers["best_baseline"], OWN) if n in plans}
        shown["teacher"] = self.teacher
        with torch.no_grad():
            drawn = {name: self.generator(plan, some, seeds).cpu() for name, plan in shown.items()}
        return {name: images for name, images in drawn.items() if images.ndim == 4}

    def follow(self, plans: Mapping[str, Plan]) -> Any:
        """The pipeline with the best plan attached."""
        attach(self.pipe, plans.get(SCALED, plans[FOUND]))
        return self.pipe


def _keep(tensors: dict[str, Tensor], draft: Path) -> None:
    write_tensors(draft, {name: tensor.contiguous() for name, tensor in tensors.items()})


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
