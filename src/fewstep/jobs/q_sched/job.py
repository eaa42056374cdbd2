"""The main job, unit by unit: open, quantize, search, measure, report. A killed run goes on at the unfinished unit."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
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
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.q_sched.report import write_report
from fewstep.jobs.tuning import scaled, tune
from fewstep.pipelines import PipelineSampler, attach, identity_of, save_pipeline, trace
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.rewards import Reward
from fewstep.runs import Run
from fewstep.schedules.tuning import JAQ, CandidateScore, Family, Problem, SearchOutcome, least_squares

CORNERS = 7
"""Values of each of the two coefficients at which the landscape is drawn."""


def run(recipe: QSchedRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report; with the scheme `none`, the plan that was found.

    Leaves behind: `pipeline/` (a diffusers folder with low-bit weights and the tuned plan), plan files, images, scores
    of every candidate, `results.json` and `report.html`.
    """
    recipe.check()
    recipe = recipe.resolved()
    rewards = judges.rewards(recipe)
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
    jaq, spent = _standardised(context, low, plans[LOW], rewards)

    outcomes = {name: _searched(context, jaq, spent, name, samplers[name], plans[name]) for name in (LOW, FULL)}
    tuned = {
        LOW_TUNED: _tuned(context, jaq, plans[LOW], outcomes[LOW]),
        FULL_TUNED: _tuned(context, jaq, plans[FULL], outcomes[FULL]),
        LOW_FITTED: _fitted(context, jaq, plans[LOW], samplers),
    }
    for name, found in tuned.items():
        found.save(run.artifact(f"plan-{plain(name)}.json"), overwrite=True)
    plans |= tuned
    landscape = _landscape(context, jaq, plans[LOW])
    numbers = measure(recipe, run, samplers, plans)
    run.unit("pipeline", lambda: _with_plan(low.pipe, plans[LOW_TUNED]), save=save_pipeline, load=lambda folder: None)

    quantization = next(iter(parts.values())).report
    results = context.write_results(
        search={name: _summary(o) for name, o in outcomes.items()},
        coefficients={name: _scales(plan) for name, plan in plans.items()},
        quantization={k: v for k, v in quantization.items() if k not in ("rows", "file_bytes")},
        **numbers,
    )
    return write_report(run, recipe, results, outcomes, plans, quantization, landscape)


def _in_its_own_bits(context: JobContext[QSchedRecipe], rewards: tuple[Reward, Reward]) -> Path:
    """Tune the pipeline as it is; leaves the plan, and the pipeline with it. Nothing is measured."""
    run, sampler = context.run, context.sampler()
    tuned = tuned_plan(context, sampler, _own_plan(context), rewards)
    place = run.artifact(f"plan-{plain(LOW_TUNED)}.json")
    tuned.save(place, overwrite=True)
    run.unit("pipeline", lambda: _with_plan(sampler.pipe, tuned), save=save_pipeline, load=lambda folder: None)
    context.write_results(search=tuned.origin["search"], coefficients=_scales(tuned))
    return place


def tuned_plan(
    context: JobContext[QSchedRecipe], sampler: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward]
) -> Plan:
    """The plan with the coefficients that the search finds for one pipeline: the search alone, nothing measured.

    Args:
        context: its recipe says how is searched.
        sampler: of the pipeline, in low bits or not.
        plan: what it follows.
        rewards: alignment and quality.
    """
    jaq, spent = _standardised(context, sampler, plan, rewards)
    return _tuned(context, jaq, plan, _searched(context, jaq, spent, LOW, sampler, plan))


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


def _standardised(
    context: JobContext[QSchedRecipe], low: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward]
) -> tuple[JAQ, float]:
    """JAQ on the calibration prompts, with its two terms on one scale over scattered candidates of the quantized
    pipeline, and what finding the scale cost in candidates.
    """
    settings = context.recipe.search
    prompts = load_prompts(settings.prompts, settings.count)
    jaq = JAQ(low, *rewards, prompts, settings.seeds, context.recipe.rewards.k)

    def compute() -> dict[str, Any]:
        spent = jaq.standardise(plan, Family(low=settings.low, high=settings.high))
        return {"centre": jaq.centre, "spread": jaq.spread, "spent": spent}

    found = context.run.unit("standardise", compute)
    jaq = dataclasses.replace(jaq, centre=tuple(found["centre"]), spread=tuple(found["spread"]))
    return jaq, found["spent"]


def _searched(
    context: JobContext[QSchedRecipe], jaq: JAQ, spent: float, name: str, sampler: PipelineSampler, plan: Plan
) -> SearchOutcome:
    """The coefficients found for one of the two pipelines."""
    settings, key = context.recipe.search, f"search-{plain(name)}"
    jaq = dataclasses.replace(jaq, generate=sampler)

    def compute() -> dict[str, Any]:
        found = tune(
            context.run, plan, jaq, settings.budget, family=_family(context), method=settings.searcher,
            seed=settings.seed, spent=spent, name=key,
        )  # fmt: skip
        return dataclasses.asdict(found)

    return _outcome(context.run.unit(key, compute))


def _tuned(context: JobContext[QSchedRecipe], jaq: JAQ, plan: Plan, outcome: SearchOutcome) -> Plan:
    """The plan with the coefficients of a search, which it names."""
    found = {
        **context.recipe.search.model_dump(),
        **context.recipe.rewards.model_dump(),
        "prompts": _digest(jaq.prompts),
        "method": "q-sched",
        "jaq": outcome.value,
        "jaq_untuned": outcome.identity_value,
    }
    tuned = scaled(plan, outcome.theta, _family(context))
    return tuned.replace(origin={**plan.origin, "search": found})


def _landscape(context: JobContext[QSchedRecipe], jaq: JAQ, plan: Plan) -> dict[str, Any]:
    """JAQ over the corners (m0, s0) of the ramp to one, a quarter of the items; free where the search has been."""
    settings, family = context.recipe.search, _family(context)
    line = torch.linspace(settings.low, settings.high, CORNERS, dtype=torch.float64)

    def compute() -> dict[str, Any]:
        problem = Problem(plan, family, jaq, log=context.run.scratch(f"search-{plain(LOW)}") / "scores.jsonl")
        corners = [[torch.stack([s, m]) for s in line] for m in line]
        # against the identity on the same items: a few prompts alone sit higher or lower than all of them
        zero = problem.score(family.identity(plan.steps), 0.25)
        values = [[problem.score(family.from_ramp(c, plan.steps), 0.25) - zero for c in row] for row in corners]
        return {"outputs": line.tolist(), "states": line.tolist(), "values": values}

    return context.run.unit("landscape", compute)


def _fitted(context: JobContext[QSchedRecipe], jaq: JAQ, plan: Plan, samplers: Mapping[str, PipelineSampler]) -> Plan:
    """The closed-form reference: least squares of every quantized step against the full-precision one."""

    def compute() -> dict[str, list[float]]:
        prompts = [prompt for prompt, _ in jaq.items]
        seeds = [seed for _, seed in jaq.items]
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
