"""What is added at the chosen point, and kept only where a paired test on other items finds it nearer: bits per step of
the plan, and Q-Sched's scalars."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.jobs.auto.context import AutoContext
from fewstep.jobs.auto.points import Point
from fewstep.jobs.auto.recipe import MIXED, RESIDENT
from fewstep.jobs.low_bit import LowBitPart, low_bit_part
from fewstep.jobs.quantize.context import named_rows
from fewstep.jobs.quantize.per_step import around, bits_per_step
from fewstep.jobs.tuning import scaled, tune_to_full_precision
from fewstep.metrics.intervals import difference_interval
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.quant.modules import copy_to_quantize
from fewstep.quant.split import split_skips

Models = dict[str, nn.Module]
NO_GAIN = "no nearer on items that the choice did not see"


def refined(context: AutoContext, point: Point) -> tuple[Models, Plan, dict[str, Any]]:
    """Networks and plan of the chosen point with what was added to them, and what is to be told of it.

    Returns:
        Networks, plan, and of `bits` and `q_sched`, as far as they were tried, whether they were `kept`; with the
        change of the distance (`gain`, an interval) where there was something to test.
    """
    models, plain = context.low(point.scheme, point.parts), context.plan_named(point.plan)
    plan, told = plain, dict[str, Any]()
    if context.recipe.space.per_step and _may_step(context, point):
        part, told["bits"] = _bits_per_step(context, point, models, plan)
        if told["bits"]["kept"]:
            models, plan = models | {context.backbone: part}, named_rows(plan, told["bits"]["rows"])
    if context.recipe.space.q_sched and point.scheme != "none":
        told["q_sched"] = _q_sched(context, models, plan, plain)
        if told["q_sched"]["kept"]:
            plan = scaled(plan, told["q_sched"]["theta"])
    return models, plan, told


def _gain(
    context: AutoContext, after: tuple[Models, Plan], before: tuple[Models, Plan], plain: Plan
) -> dict[str, float]:
    """The change of the distance from full precision in the same plan, on items that no search saw."""
    settings = context.recipe.search
    other = context.items("tuning", settings.conditions, settings.items, settings.seed)

    def features(models: Models, plan: Plan) -> Tensor:
        return context.features(other.draw(context.sampler(**models), plan))

    with torch.no_grad():
        reference = features({}, plain)
        ours, theirs = ((features(*one) - reference).norm(dim=1) for one in (after, before))
    return difference_interval(ours, theirs).as_dict()


# --- bits per step --------------------------------------------------------------------------------------------------


def _may_step(context: AutoContext, point: Point) -> bool:
    """Whether rows of the plan can run in bits of their own: one network, in one scheme, called more than once."""
    one = point.scheme != "none" and not point.scheme.startswith(MIXED) and not point.scheme.endswith(RESIDENT)
    return one and len(context.backbones) == 1 and len(context.plan_named(point.plan).rows) > 1


def _bits_per_step(context: AutoContext, point: Point, models: Models, plan: Plan) -> tuple[nn.Module, dict[str, Any]]:
    """The network with a table of bits per row of the plan, and what was found.

    Rows differ in the bits of their inputs alone, which takes no bytes, at the same compute in the mean.
    """
    name = context.backbone
    part = low_bit_part(
        context, context.backbones[name], lambda: _stepped(context, point, plan), unit="bits-per-step",
        artifact="low/bits-per-step",
    )  # fmt: skip
    found = part.report["per_step"]
    told = {"rows": found["rows"], "reason": found["reason"], "kept": False}
    if not found["rows"]:
        return part.model, told
    after = models | {name: part.model}, named_rows(plan, found["rows"])

    def compute() -> dict[str, Any]:
        return {"gain": _gain(context, after, (models, plan), plan), "fits": _fits(context, *after)}

    tested = context.run.unit("bits-per-step-test", compute)
    nearer = tested["gain"]["high"] < 0
    why = found["reason"] if nearer and tested["fits"] else "over the budget" if nearer else NO_GAIN
    return part.model, {
        **told, "gain": tested["gain"], "kept": nearer and tested["fits"], "reason": why, "choice": found["choice"]
    }  # fmt: skip


def _stepped(context: AutoContext, point: Point, plan: Plan) -> LowBitPart:
    """The network as `fewstep quantize --per-step` makes it, on the items of the search."""
    name, sampler = context.backbone, context.sampler()

    def draw(model: nn.Module, rows: Sequence[int] = ()) -> Tensor:
        sampler.pipe.register_modules(**{name: model})
        with torch.no_grad():
            return context.searched.draw(sampler, named_rows(plan, rows), "latent")

    full, call = copy_to_quantize(context.backbones[name]), context.calls[name][0]
    split_skips(full)
    one = copy_to_quantize(full)
    report = quantize(one, point.scheme, example=call)
    rungs = around(point.scheme)
    model, report, found = bits_per_step(context.run, draw, len(plan.rows), call, full, one, report, rungs, {})
    return LowBitPart(model, {**report.to_dict(), "per_step": found})


def _fits(context: AutoContext, models: Models, plan: Plan) -> bool:
    """Whether it keeps the budgets."""
    recipe = context.recipe
    if context.size(models) > recipe.bytes_limit:
        return False
    return not recipe.latency or statistics.median(context.timed(models, plan)) <= recipe.time_limit


# --- Q-Sched --------------------------------------------------------------------------------------------------------


def _q_sched(context: AutoContext, models: Models, plan: Plan, plain: Plan) -> dict[str, Any]:
    """Q-Sched's scalars for the low-bit networks, and whether they are kept.

    Args:
        context: of the job.
        models: the networks.
        plan: theirs.
        plain: the same for full precision, which has no tables of bits.
    """
    recipe = context.recipe

    def compute() -> dict[str, Any]:
        full, low = (context.sampler(), plain), (context.sampler(**models), plan)
        found = tune_to_full_precision(context.run, context.searched, full, low, recipe.space.q_sched, recipe.piece)
        gain = _gain(context, (models, scaled(plan, found.theta)), (models, plan), plain)
        return {"theta": list(found.theta), "gain": gain}

    found = context.run.unit("q-sched", compute, shared=True)
    kept = found["gain"]["high"] < 0
    if not kept:
        context.run.say("Q-Sched has nothing measurable to win at this point: the plan stays as it is.")
    return {**found, "kept": kept}
