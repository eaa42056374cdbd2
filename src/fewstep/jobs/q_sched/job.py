"""The main job, unit by unit: open, quantize, search, measure, report. A killed run goes on at the unfinished unit."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.jobs.q_sched import judges
from fewstep.jobs.q_sched.measure import measure
from fewstep.jobs.q_sched.names import FULL, FULL_TUNED, LOW, LOW_FITTED, LOW_TUNED, plain
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.q_sched.report import write_report
from fewstep.pipelines import (
    PipelineSampler,
    attach,
    backbone_of,
    backbones_of,
    exchanged,
    fuse_adapters,
    identity_of,
    plan_of,
    save_pipeline,
    trace,
)
from fewstep.pipelines.calls import condition_kind
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.rewards import Reward
from fewstep.runs import Run, environment
from fewstep.schedules.tuning import JAQ, Family, Problem, SearchOutcome, least_squares, searcher


def run(recipe: QSchedRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `pipeline/` (a diffusers folder with low-bit weights and the tuned plan), plan files, images, scores
    of every candidate, `results.json` and `report.html`.
    """
    recipe.check()
    job = _Job(recipe.resolved(), run)
    job.prepare()
    outcomes = {name: job.search(name) for name in (LOW, FULL)}
    job.fit()
    landscape = job.landscape()
    numbers = measure(job.recipe, run, job.generators, job.plans)
    run.unit("pipeline", job.save, save=lambda pipe, draft: save_pipeline(pipe, draft), load=lambda folder: None)
    results = {
        "recipe": job.recipe.plain(),
        "environment": environment(),
        "search": {name: _summary(o) for name, o in outcomes.items()},
        "coefficients": {name: _scales(plan) for name, plan in job.plans.items()},
        "quantization": {k: v for k, v in job.quantization.items() if k != "rows"},
        **numbers,
        "seconds": run.seconds(),
    }
    write_json(run.path / "results.json", results)
    if recipe.results:
        write_json(recipe.results, results)
    return write_report(run, job.recipe, results, outcomes, job.plans, job.quantization, landscape)


class _Job:
    """The state that units share: two pipelines, the plans found so far, and the objective."""

    def __init__(self, recipe: QSchedRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.plans: dict[str, Plan] = {}
        self.generators: dict[str, PipelineSampler] = {}
        self.quantization: dict[str, Any] = {}

    def prepare(self) -> None:
        """Open the networks that score, then the pipeline; read its plan, quantize its backbone."""
        recipe = self.recipe
        self.rewards = judges.rewards(recipe)
        if not self.run.done("evaluate"):
            judges.check(recipe)
        full = recipe.opened()
        if condition_kind(full) != "prompt":
            hint = f"Use fewstep search {recipe.model} --q-sched 100, which needs no rewards."
            raise FewstepError("the rewards of Q-Sched read prompts, and this pipeline takes none", hint=hint)
        fuse_adapters(full)
        guidance = max(1.0, recipe.guidance)
        plan = self.run.unit(
            "plan",
            lambda: plan_of(full, recipe.steps, guidance_scale=recipe.guidance, **recipe.call).replace(
                identity=identity_of(full, guidance)
            ),
            save=Plan.save,
            load=Plan.load,
            artifact="plan.json",
        )
        plan.check(identity_of(full, guidance))
        low = self._low_bit(full, recipe.place)
        self.generators = {
            name: PipelineSampler(pipe, recipe.guidance, dict(recipe.call), recipe.batch)
            for name, pipe in ((FULL, full), (LOW, low))
        }
        self.plans = {FULL: plan, LOW: plan.replace(identity=identity_of(low, guidance))}

    def search(self, name: str) -> SearchOutcome:
        """Search the coefficients of one pipeline and keep the tuned plan."""
        settings, base = self.recipe.search, self.plans[name]
        family = self._family(name)
        objective = dataclasses.replace(self.objective, generate=self.generators[name])
        key = plain(name)

        def compute() -> dict[str, Any]:
            with self.run.progress(f"search, {name}", total=round(settings.budget)) as advance:
                done = 0

                def watch(evaluation: Any) -> None:
                    nonlocal done
                    advance(int(evaluation.spent) - done, note=f"JAQ {evaluation.value:+.3f}")
                    done = int(evaluation.spent)

                problem = Problem(
                    base, family, objective, log=self._log(name), spent=self._standard["spent"], watch=watch
                )
                searcher(settings.searcher)(problem, settings.budget, settings.seed)
                return dataclasses.asdict(problem.outcome())

        outcome = _outcome(self.run.unit(f"search-{key}", compute))
        tuned = family.apply(base, torch.tensor(outcome.theta, dtype=torch.float64))
        found = {
            **settings.model_dump(),
            **self.recipe.rewards.model_dump(),
            "prompts": _digest(self.objective.prompts),
        }
        found |= {"method": "q-sched", "jaq": outcome.value, "jaq_untuned": outcome.identity_value}
        self._keep(LOW_TUNED if name == LOW else FULL_TUNED, tuned.replace(origin={**base.origin, "search": found}))
        return outcome

    def landscape(self) -> dict[str, Any]:
        """JAQ over the corners (m0, s0) of the ramp to one, a quarter of the items; free where the search has been."""
        settings, base = self.recipe.search, self.plans[LOW]
        family = self._family(LOW)
        line = torch.linspace(settings.low, settings.high, 7, dtype=torch.float64)

        def compute() -> dict[str, Any]:
            problem = Problem(base, family, self.objective, log=self._log(LOW))
            corners = [[torch.stack([s, m]) for s in line] for m in line]
            # against the identity on the same items: a few prompts alone sit higher or lower than all of them
            zero = problem.score(family.identity(base.steps), 0.25)
            values = [[problem.score(family.from_ramp(c, base.steps), 0.25) - zero for c in row] for row in corners]
            return {"outputs": line.tolist(), "states": line.tolist(), "values": values}

        return self.run.unit("landscape", compute)

    def fit(self) -> None:
        """The closed-form reference: least squares of every quantized step against the full-precision one."""
        plan, full, low = self.plans[LOW], self.generators[FULL], self.generators[LOW]

        def compute() -> dict[str, list[float]]:
            prompts = [prompt for prompt, _ in self.objective.items]
            seeds = [seed for _, seed in self.objective.items]
            along = trace(low, plan, prompts, seeds)
            truth = trace(full, plan, prompts, seeds, along=along)
            s, m = least_squares(plan, along.states, along.outputs, truth.outputs)
            return {"sample_scale": s.tolist(), "output_scale": m.tolist()}

        scales = self.run.unit("least-squares", compute)
        self._keep(LOW_FITTED, plan.scaled(scales["sample_scale"], scales["output_scale"]))

    def save(self) -> Any:
        """The low-bit pipeline with its tuned plan attached."""
        pipe = self.generators[LOW].pipe
        attach(pipe, self.plans[LOW_TUNED])
        return pipe

    @cached_property
    def objective(self) -> JAQ:
        """JAQ on the calibration prompts, standardised over scattered candidates of the quantized pipeline."""
        settings, rewards = self.recipe.search, self.recipe.rewards
        prompts = load_prompts(settings.prompts, settings.count)
        jaq = JAQ(self.generators[LOW], *self.rewards, prompts, settings.seeds, rewards.k)

        def standardise() -> dict[str, Any]:
            spent = jaq.standardise(self.plans[LOW], Family(low=settings.low, high=settings.high))
            return {"centre": jaq.centre, "spread": jaq.spread, "spent": spent}

        self._standard = self.run.unit("standardise", standardise)
        jaq.centre, jaq.spread = tuple(self._standard["centre"]), tuple(self._standard["spread"])
        return jaq

    _standard: dict[str, Any]
    rewards: tuple[Reward, Reward]

    def _low_bit(self, full: Any, device: str) -> Any:
        """A pipeline that shares everything but its backbones, which are quantized and come back from their files."""
        low = {}
        for name, part in backbones_of(full).items():
            second = "" if part is backbone_of(full) else f"-{name}"
            low[name] = self.run.unit(
                f"quantize{second}", partial(self._quantized, part), save=_save_model, load=partial(self._load, part),
                artifact=f"quantized-backbone{second}",
            ).to(device)  # fmt: skip
        return exchanged(full, low)

    def _quantized(self, part: Any) -> tuple[Any, dict[str, Any]]:
        model = copy.deepcopy(part)
        report = quantize(model, self.recipe.scheme)
        if not self.run.quiet:
            import rich

            rich.print(report.table())
        return model, report.to_dict()

    def _load(self, part: Any, folder: Path) -> Any:
        self.quantization = self.quantization or read_json(folder / "quantization.json")
        return type(part).from_pretrained(folder, dtype=getattr(torch, self.recipe.dtype))

    def _family(self, name: str) -> Family:
        settings = self.recipe.search
        config: Any = backbone_of(self.generators[name].pipe).config
        channels = int(config.in_channels)
        return Family(settings.family, settings.low, settings.high, channels)

    def _log(self, name: str) -> Path:
        return self.run.scratch(f"search-{plain(name)}") / "scores.jsonl"

    def _keep(self, name: str, plan: Plan) -> None:
        file = self.run.artifact(f"plan-{name.replace(' + ', '-').replace(', ', '-').replace(' ', '-')}.json")
        plan.save(file, overwrite=True)
        self.plans[name] = plan


def _save_model(result: tuple[Any, dict[str, Any]], draft: Path) -> None:
    result[0].save_pretrained(draft)
    write_json(draft / "quantization.json", result[1])


def _digest(prompts: Sequence[str]) -> str:
    """What tells one list of prompts from another."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def _outcome(values: dict[str, Any]) -> SearchOutcome:
    from fewstep.schedules.tuning import CandidateScore

    history = tuple(CandidateScore(**{**e, "theta": tuple(e["theta"])}) for e in values["history"])
    gain = None if values["gain"] is None else tuple(values["gain"])
    return SearchOutcome(**{**values, "theta": tuple(values["theta"]), "gain": gain, "history": history})


def _summary(outcome: SearchOutcome) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(outcome).items() if k != "history"}


def _scales(plan: Plan) -> dict[str, list[Any]]:
    def number(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else float(value)

    return {
        "sample_scale": [number(row.sample_scale) for row in plan.rows],
        "output_scale": [number(row.output_scale) for row in plan.rows],
    }
