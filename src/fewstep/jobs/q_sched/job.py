"""The main job, unit by unit: open, quantize, search, measure, report. A killed run goes on at the unfinished unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.jobs.context import Items, JobContext, seeds_for
from fewstep.jobs.low_bit import LowBitPart, low_bit_part, output_left
from fewstep.jobs.q_sched import coefficients, judges
from fewstep.jobs.q_sched.against import quantized_by
from fewstep.jobs.q_sched.measure import System, measure
from fewstep.jobs.q_sched.names import (
    FULL,
    FULL_TUNED,
    LOW,
    LOW_CORRECTED,
    LOW_FITTED,
    LOW_TUNED,
    WEIGHTS,
    plain,
    then_tuned,
)
from fewstep.jobs.q_sched.objective import TuningObjective, objective_of, verdict
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.q_sched.report import write_report
from fewstep.pipelines import PipelineSampler, attach, identity_of, save_pipeline
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.quant.calls import spread_calls
from fewstep.quant.modules import copy_to_quantize
from fewstep.rewards import Reward
from fewstep.runs import Run
from fewstep.schedules.tuning import SearchOutcome

Context = JobContext[QSchedRecipe]
LOOKED_AT = 2
"""Prompts of the search whose calls show outliers: these sit in the same channels whatever is drawn."""


def run(recipe: QSchedRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report; with the scheme `none`, the plan that was found.

    Leaves behind: `pipeline/` (a diffusers folder with low-bit weights and the tuned plan, or the untuned one where
    tuning gained nothing on calibration items that the search did not see), plan files, images, scores of every
    candidate, `results.json` and `report.html`.
    """
    recipe.check()
    recipe = recipe.resolved()
    rewards = judges.rewards(recipe) if recipe.search.objective == "jaq" else None
    context = _opened(recipe, run)
    if recipe.scheme == "none":
        return _in_its_own_bits(context, rewards)
    plan = _own_plan(context)
    parts = _low_bit(context)
    full = context.sampler(), plan
    low = _system(context, parts, plan)
    objective = objective_of(context, *low, rewards)

    systems, outcomes, sizes = _compared(context, objective, full, low, parts)
    for name in systems.keys() - {FULL, LOW}:
        systems[name][1].save(run.artifact(f"plan-{plain(name)}.json"), overwrite=True)
    landscape = coefficients.scan_landscape(context, objective.on(low[0]), low[1])
    tuned = systems[LOW_TUNED][1]
    tested = run.unit("verdict", partial(verdict, context, objective, low[0], low[1], tuned), shared=True)
    numbers = measure(recipe, run, systems) if recipe.evaluation.count else {}
    best = tuned if tested["tuned"] else low[1]
    run.unit("pipeline", lambda: _with_plan(low[0].pipe, best), save=save_pipeline, load=lambda folder: None)

    quantization = next(iter(parts.values())).report
    plans = {name: plan for name, (_, plan) in systems.items()}
    results = context.write_results(
        search={name: _summary(o) for name, o in outcomes.items()},
        verdict=tested,
        coefficients={name: _scales(plan) for name, plan in plans.items()},
        quantization={k: v for k, v in quantization.items() if k not in ("rows", "file_bytes")},
        bytes=sizes,
        **numbers,
    )
    return write_report(run, recipe, results, outcomes, plans, quantization, landscape)


def _opened(recipe: QSchedRecipe, run: Run) -> Context:
    if recipe.scheme != "none" and recipe.evaluation.count and not run.done("evaluate"):
        judges.check(recipe)
    context = JobContext.open(recipe, run, fuse=True)
    if condition_kind(context.pipe) != "prompt":
        hint = f"Use fewstep search {recipe.model} --q-sched 100, which needs no rewards."
        raise FewstepError("the rewards of Q-Sched read prompts, and this pipeline takes none", hint=hint)
    return context


def _in_its_own_bits(context: Context, rewards: tuple[Reward, Reward] | None) -> Path:
    """Tune the pipeline as it is; leaves the plan, and the pipeline with it. Nothing is measured."""
    run, sampler = context.run, context.sampler()
    tuned = tuned_plan(context, sampler, _own_plan(context), rewards)
    place = run.artifact(f"plan-{plain(LOW_TUNED)}.json")
    tuned.save(place, overwrite=True)
    run.unit("pipeline", lambda: _with_plan(sampler.pipe, tuned), save=save_pipeline, load=lambda folder: None)
    context.write_results(search=tuned.origin["search"], coefficients=_scales(tuned))
    return place


def tuned_plan(context: Context, sampler: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward] | None) -> Plan:
    """The plan with the coefficients that the search finds for one pipeline: the search alone, nothing measured.

    Args:
        context: its recipe says how is searched.
        sampler: of the pipeline, in low bits or not.
        plan: what it follows.
        rewards: alignment and quality, of the objective `jaq`.
    """
    objective = objective_of(context, sampler, plan, rewards)
    return coefficients.with_scales(
        context, objective, plan, coefficients.search_scales(context, objective, LOW, sampler, plan)
    )


def _own_plan(context: Context) -> Plan:
    """The plan that the pipeline follows today, kept with the run."""
    plan = context.run.unit("plan", lambda: context.plan, save=Plan.save, load=Plan.load, artifact="plan.json")
    plan.check(context.identity)
    return plan


def _low_bit(context: Context) -> dict[str, LowBitPart]:
    """The networks that denoise, quantized; layers whose inputs 8 bits cannot carry keep 16."""
    prompts = context.recipe.searched()[:LOOKED_AT]
    recorded = cache(lambda: context.calls_of(Items(prompts, seeds_for("calibration", 0, len(prompts)))))

    def quantized(name: str, source: nn.Module) -> LowBitPart:
        model, calls = copy_to_quantize(source), spread_calls(recorded()[name])
        report = quantize(model, context.recipe.scheme, example=calls)
        if not context.run.quiet:
            import rich

            rich.print(report.table())
        left = output_left(context.run, name, source, model, calls)
        return LowBitPart(model, {**report.to_dict(), "output_sqnr": left})

    parts = {}
    for name, source in context.backbones.items():
        second = "" if name == context.backbone else f"-{name}"
        parts[name] = low_bit_part(
            context, source, partial(quantized, name, source), unit=f"quantize{second}",
            artifact=f"quantized-backbone{second}",
        )  # fmt: skip
    return parts


def _system(context: Context, parts: Mapping[str, LowBitPart], plan: Plan, way: str = "") -> System:
    """The pipeline with these networks, and the plan as theirs; the way they were quantized, unless the recipe's."""
    sampler = context.sampler(**{name: part.model for name, part in parts.items()})
    origin = {**plan.origin, "weights": way} if way else plan.origin
    return sampler, plan.replace(identity=identity_of(sampler.pipe, context.guidance), origin=origin)


def _bytes(parts: Mapping[str, LowBitPart]) -> int:
    return sum(int(part.report["file_bytes"]) for part in parts.values())


TUNED = {LOW: LOW_TUNED, FULL: FULL_TUNED}
"""What a pipeline is called with the plan that was found for it."""
Compared = tuple[dict[str, System], dict[str, SearchOutcome], dict[str, int]]
"""Systems, what was searched for them, and the bytes of the files of the quantized ones."""


def _compared(
    context: Context, objective: TuningObjective, full: System, low: System, parts: Mapping[str, LowBitPart]
) -> Compared:
    """Everything that is measured, by name; where nothing is, the low-bit pipeline before and after its search."""
    systems, measured = {FULL: full, LOW: low}, context.recipe.evaluation.count > 0
    searched = {name: systems[name] for name in ((FULL, LOW) if measured else (LOW,))}
    outcomes = {
        name: coefficients.search_scales(context, objective, name, *system) for name, system in searched.items()
    }
    for name, (sampler, plan) in reversed(searched.items()):
        systems[TUNED[name]] = sampler, coefficients.with_scales(context, objective, plan, outcomes[name])
    sizes = {LOW: _bytes(parts)}
    if not measured:
        return systems, outcomes, sizes
    systems[LOW_FITTED] = low[0], coefficients.least_squares_plan(context, objective, low, full)
    for way in context.recipe.against:
        more, found, size = _against(context, objective, way, parts, systems)
        systems, outcomes, sizes = systems | more, outcomes | found, sizes | size
    return systems, outcomes, sizes


def _against(
    context: Context, objective: TuningObjective, way: str, low: Mapping[str, LowBitPart],
    systems: Mapping[str, System],
) -> Compared:  # fmt: skip
    """What another way makes of the same bytes: its systems, what was searched on top, and its bytes."""
    if way == "ptqd":
        return {LOW_CORRECTED: (systems[LOW][0], coefficients.ptqd_plan(context, objective, systems))}, {}, {}
    parts = {}
    for name, source in context.backbones.items():
        unit = f"quantize-{way}" + ("" if name == context.backbone else f"-{name}")
        make = partial(quantized_by, way, context, name, low[name].report["file_bytes"])
        parts[name] = low_bit_part(context, source, make, unit=unit, artifact=unit)
    title = WEIGHTS[way]
    system = _system(context, parts, systems[FULL][1], title)
    found = coefficients.search_scales(context, objective, title, *system)
    tuned = system[0], coefficients.with_scales(context, objective, system[1], found)
    return {title: system, then_tuned(title): tuned}, {title: found}, {title: _bytes(parts)}


# --- what is kept ---------------------------------------------------------------------------------------------------


def _with_plan(pipe: Pipeline, plan: Plan) -> Any:
    attach(pipe, plan)
    return pipe


def _summary(outcome: SearchOutcome) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(outcome).items() if k != "history"}


def _scales(plan: Plan) -> dict[str, list[Any]]:
    def number(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else float(value)

    return {
        "sample_scale": [number(row.sample_scale) for row in plan.rows],
        "output_scale": [number(row.output_scale) for row in plan.rows],
    }
