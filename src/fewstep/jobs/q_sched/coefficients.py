"""The coefficients of a pipeline: searched, in closed form, by PTQD; and the landscape that the search walks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.jobs.context import Items, JobContext
from fewstep.jobs.q_sched.measure import System
from fewstep.jobs.q_sched.names import FULL, LOW, plain
from fewstep.jobs.q_sched.objective import TuningObjective
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.quantize.correct import pipeline_errors
from fewstep.jobs.tuning import scaled, score_log, tune_scales
from fewstep.pipelines import PipelineSampler, trace
from fewstep.plan import Plan
from fewstep.quant.corrections import ptqd
from fewstep.schedules.tuning import CandidateScore, Family, Objective, Problem, SearchOutcome, least_squares

Context = JobContext[QSchedRecipe]
CORNERS = 7
"""Values of each of the two coefficients at which the landscape is drawn."""


def search_scales(
    context: Context, objective: TuningObjective, name: str, sampler: PipelineSampler, plan: Plan
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


def with_scales(context: Context, objective: TuningObjective, plan: Plan, outcome: SearchOutcome) -> Plan:
    """The plan with the coefficients of a search, which it names."""
    value = "jaq" if objective.name == "jaq" else "value"
    found = {
        **context.recipe.search.model_dump(),
        **context.recipe.rewards.model_dump(),
        "prompts": _digest(context.recipe.searched()),
        "method": "q-sched",
        value: outcome.value,
        f"{value}_untuned": outcome.identity_value,
    }
    tuned = scaled(plan, outcome.theta, _family(context))
    return tuned.replace(origin={**plan.origin, "search": found})


def scan_landscape(context: Context, objective: Objective, plan: Plan) -> dict[str, Any]:
    """The objective over the corners (m0, s0) of the ramp to one, a quarter of the items; free where it is known.

    Nothing where the recipe asks for none.
    """
    settings, family = context.recipe.search, _family(context)
    if not settings.landscape:
        return {}
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


def least_squares_plan(context: Context, objective: TuningObjective, low: System, full: System) -> Plan:
    """The closed-form reference: least squares of every quantized step against the full-precision one."""

    def compute() -> dict[str, list[float]]:
        prompts, seeds = map(list, zip(*objective.items, strict=True))
        along = trace(*low, prompts, seeds)
        truth = trace(full[0], low[1], prompts, seeds, along=along)
        s, m = least_squares(low[1], along.states, along.outputs, truth.outputs)
        return {"sample_scale": s.tolist(), "output_scale": m.tolist()}

    scales = context.run.unit("least-squares", compute)
    return low[1].scaled(scales["sample_scale"], scales["output_scale"])


def ptqd_plan(context: Context, objective: TuningObjective, systems: Mapping[str, System]) -> Plan:
    """PTQD's correction of what quantization does to the output on average (arXiv 2305.10657)."""

    def compute() -> Plan:
        items = Items(*map(list, zip(*objective.items, strict=True)))
        return ptqd(systems[LOW][1], pipeline_errors(systems[LOW], systems[FULL], items))

    def save(plan: Plan, draft: Path) -> None:  # a folder: the offsets lie in a file of their own
        draft.mkdir(parents=True)
        plan.save(draft / "plan.json")

    return context.run.unit("ptqd", compute, save=save, load=lambda folder: Plan.load(folder / "plan.json"))


def _family(context: Context) -> Family:
    settings = context.recipe.search
    config: Any = context.backbones[context.backbone].config
    return Family(settings.family, settings.low, settings.high, int(config.in_channels))


def _digest(prompts: Sequence[str]) -> str:
    """What tells one list of prompts from another."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def _outcome(values: dict[str, Any]) -> SearchOutcome:
    history = tuple(CandidateScore(**{**e, "theta": tuple(e["theta"])}) for e in values["history"])
    gain = None if values["gain"] is None else tuple(values["gain"])
    return SearchOutcome(**{**values, "theta": tuple(values["theta"]), "gain": gain, "history": history})
