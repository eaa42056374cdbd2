"""The main job, unit by unit: open, quantize, search, measure, report. A killed run goes on at the unfinished unit."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.jobs.context import JobContext
from fewstep.jobs.low_bit import LowBitPart, low_bit_part
from fewstep.jobs.q_sched import judges
from fewstep.jobs.q_sched.measure import measure
from fewstep.jobs.q_sched.names import FULL, FULL_TUNED, LOW, LOW_FITTED, LOW_TUNED, plain
from fewstep.jobs.q_sched.objective import TuningObjective, objective_of, verdict
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.q_sched.report import write_report
from fewstep.jobs.tuning import scaled, score_log, tune_scales
from fewstep.pipelines import PipelineSampler, attach, identity_of, save_pipeline, trace
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.rewards import Reward
from fewstep.runs import Run
from fewstep.schedules.tuning import CandidateScore, Family, Objective, Problem, SearchOutcome, least_squares

CORNERS = 7
"""Values of each of the two coefficients at which the landscape is drawn."""


def run(recipe: QSchedRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report; with the scheme `none`, the plan that was found.

    Leaves behind: `pipeline/` (a diffusers folder with low-bit weights and the tuned plan, or the untuned one where
    tuning gained nothing on calibration items that the search did not see), plan files, images, scores of every
    candidate, `results.json` and `report.html`.
    """
    recipe.check()
    recipe = recipe.resolved()
    rewards = judges.rewards(recipe) if recipe.search.objective == "jaq" else None
    if recipe.scheme != "none" and not run.done("evaluate"):
        judges.check(recipe)
    context = JobContext.open(recipe, run, fuse=True)
    if condition_kind(context.pipe) != "prompt":
        hint = f"Use fewstep search {recipe.model} --q-sched 100, which needs no rewards."
        raise FewstepError("the rewards of Q-Sched read prompts, and this pipeline takes none", hint=hint)
    if recipe.scheme == "none":
        return _in_its_own_bits(context, rewards)
    plan = _own_plan(context)
    parts = _low_bit(context)
    low = context.sampler(**{name: part.model for name, part in parts.items()})
    samplers = {FULL: context.sampler(), LOW: low}
    plans = {FULL: plan, LOW: plan.replace(identity=identity_of(low.pipe, context.guidance))}
    objective = objective_of(context, low, plans[LOW], rewards)

    outcomes = {name: _searched(context, objective, name, samplers[name], plans[name]) for name in (LOW, FULL)}
    tuned = {
        LOW_TUNED: _tuned(context, objective, plans[LOW], outcomes[LOW]),
        FULL_TUNED: _tuned(context, objective, plans[FULL], outcomes[FULL]),
        LOW_FITTED: _fitted(context, objective, plans[LOW], samplers),
    }
    for name, found in tuned.items():
        found.save(run.artifact(f"plan-{plain(name)}.json"), overwrite=True)
    plans |= tuned
    landscape = _landscape(context, objective.on(low), plans[LOW])
    tested = run.unit("verdict", partial(verdict, context, objective, low, plans[LOW], plans[LOW_TUNED]), shared=True)
    numbers = measure(recipe, run, samplers, plans)
    best = plans[LOW_TUNED if tested["tuned"] else LOW]
    run.unit("pipeline", lambda: _with_plan(low.pipe, best), save=save_pipeline, load=lambda folder: None)

    quantization = next(iter(parts.values())).report
    results = context.write_results(
        search={name: _summary(o) for name, o in outcomes.items()},
        verdict=tested,
        coefficients={name: _scales(plan) for name, plan in plans.items()},
        quantization={k: v for k, v in quantization.items() if k not in ("rows", "file_bytes")},
        **numbers,
    )
    return write_report(run, recipe, results, outcomes, plans, quantization, landscape)


def _in_its_own_bits(context: JobContext[QSchedRecipe], rewards: tuple[Reward, Reward] | None) -> Path:
    """Tune the pipeline as it is; leaves the plan, and the pipeline with it. Nothing is measured."""
    run, sampler = context.run, context.sampler()
    tuned = tuned_plan(context, sampler, _own_plan(context), rewards)
    place = run.artifact(f"plan-{plain(LOW_TUNED)}.json")
    tuned.save(place, overwrite=True)
    run.unit("pipeline", lambda: _with_plan(sampler.pipe, tuned), save=save_pipeline, load=lambda folder: None)
    context.write_results(search=tuned.origin["search"], coefficients=_scales(tuned))
    return place


def tuned_plan(
    context: JobContext[QSchedRecipe], sampler: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward] | None
) -> Plan:
    """The plan with the coefficients that the search finds for one pipeline: the search alone, nothing measured.

    Args:
        context: its recipe says how is searched.
        sampler: of the pipeline, in low bits or not.
        plan: what it follows.
        rewards: alignment and quality, of the objective `jaq`.
    """
    objective = objective_of(context, sampler, plan, rewards)
    return _tuned(context, objective, plan, _searched(context, objective, LOW, sampler, plan))


def _own_plan(context: JobContext[QSchedRecipe]) -> Plan:
    """The plan that the pipeline follows today, kept with the run."""
    plan = context.run.unit("plan", lambda: context.plan, save=Plan.save, load=Plan.load, artifact="plan.json")
    plan.check(context.identity)
    return plan


def _low_bit(context: JobContext[QSchedRecipe]) -> dict[str, LowBitPart]:
    """The networks that denoise, quantized."""

    def quantized(source: nn.Module) -> LowBitPart:
        model = copy.deepcopy(source)
        report = quantize(model, context.recipe.scheme)
        if not context.run.quiet:
            import rich

            rich.print(report.table())
        return LowBitPart(model, report.to_dict())

    parts = {}
    for name, source in context.backbones.items():
        second = "" if name == context.backbone else f"-{name}"
        parts[name] = low_bit_part(
            context, source, lambda source=source: quantized(source), unit=f"quantize{second}",  # type: ignore[misc]
            artifact=f"quantized-backbone{second}",
        )  # fmt: skip
    return parts


# --- the search -----------------------------------------------------------------------------------------------------


def _searched(
    context: JobContext[QSchedRecipe], objective: TuningObjective, name: str, sampler: PipelineSampler, plan: Plan
) -> SearchOutcome:
    """The coefficients found for one of the two pipelines."""
    settings, key = context.recipe.search, f"search-{plain(name)}"

    def compute() -> dict[str, Any]:
        found = tune_scales(
            context.run, plan, objective.on(sampler), settings.budget, family=_family(context),
            method=settings.searcher, seed=settings.seed, spent=objective.spent, name=key, widen=settings.widen,
        )  # fmt: skip
        return dataclasses.asdict(found)

    return _outcome(context.run.unit(key, compute, shared=True))


def _tuned(context: JobContext[QSchedRecipe], objective: TuningObjective, plan: Plan, outcome: SearchOutcome) -> Plan:
    """The plan with the coefficients of a search, which it names."""
    value = "jaq" if objective.name == "jaq" else "value"
    found = {
        **context.recipe.search.model_dump(),
        **context.recipe.rewards.model_dump(),
        "prompts": _digest(load_prompts(context.recipe.search.prompts, context.recipe.search.count)),
        "method": "q-sched",
        value: outcome.value,
        f"{value}_untuned": outcome.identity_value,
    }
    tuned = scaled(plan, outcome.theta, _family(context))
    return tuned.replace(origin={**plan.origin, "search": found})


def _landscape(context: JobContext[QSchedRecipe], objective: Objective, plan: Plan) -> dict[str, Any]:
    """The objective over the corners (m0, s0) of the ramp to one, a quarter of the items; free where it is known."""
    settings, family = context.recipe.search, _family(context)
    line = torch.linspace(settings.low, settings.high, CORNERS, dtype=torch.float64)

    def compute() -> dict[str, Any]:
        problem = Problem(plan, family, objective, log=score_log(context.run, f"search-{plain(LOW)}"))
        corners = [[torch.stack([s, m]) for s in line] for m in line]
        problem.ahead((family.from_ramp(c, plan.steps) for row in corners for c in row), 0.25)
        # against the identity on the same items: a few prompts alone sit higher or lower than all of them
        zero = problem.score(family.identity(plan.steps), 0.25)
        values = [[problem.score(family.from_ramp(c, plan.steps), 0.25) - zero for c in row] for row in corners]
        return {"outputs": line.tolist(), "states": line.tolist(), "values": values}

    return context.run.unit("landscape", compute, shared=True)


def _fitted(
    context: JobContext[QSchedRecipe], objective: TuningObjective, plan: Plan, samplers: Mapping[str, PipelineSampler]
) -> Plan:
    """The closed-form reference: least squares of every quantized step against the full-precision one."""

    def compute() -> dict[str, list[float]]:
        prompts = [prompt for prompt, _ in objective.items]
        seeds = [seed for _, seed in objective.items]
        along = trace(samplers[LOW], plan, prompts, seeds)
        truth = trace(samplers[FULL], plan, prompts, seeds, along=along)
        s, m = least_squares(plan, along.states, along.outputs, truth.outputs)
        return {"sample_scale": s.tolist(), "output_scale": m.tolist()}

    scales = context.run.unit("least-squares", compute)
    return plan.scaled(scales["sample_scale"], scales["output_scale"])


def _family(context: JobContext[QSchedRecipe]) -> Family:
    settings = context.recipe.search
    config: Any = context.backbones[context.backbone].config
    return Family(settings.family, settings.low, settings.high, int(config.in_channels))


# --- what is kept ---------------------------------------------------------------------------------------------------


def _with_plan(pipe: Pipeline, plan: Plan) -> Any:
    attach(pipe, plan)
    return pipe


def _digest(prompts: Sequence[str]) -> str:
    """What tells one list of prompts from another."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def _outcome(values: dict[str, Any]) -> SearchOutcome:
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
