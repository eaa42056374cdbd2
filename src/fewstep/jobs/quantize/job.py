"""A quantization run, unit by unit: open, record, choose bits, quantize each part, measure, report, save."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.jobs.context import slug
from fewstep.jobs.low_bit import LowBitPart, low_bit_part
from fewstep.jobs.quantize.backbone import low_backbone
from fewstep.jobs.quantize.context import QuantizeContext, named_rows
from fewstep.jobs.quantize.correct import correct_plan
from fewstep.jobs.quantize.measure import measure
from fewstep.jobs.quantize.recipe import QuantizeRecipe
from fewstep.jobs.quantize.report import block_table, part_table, write_layers, write_report
from fewstep.jobs.tuning import scaled, tune_to_full_precision
from fewstep.pipelines import PipelineSampler, attach, exchanged, identity_of, save_pipeline
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.quant import Rule, Scheme, quantize
from fewstep.quant.calls import replay, spread_calls
from fewstep.quant.fidelity import sqnr
from fewstep.quant.first_token import keep_first_tokens
from fewstep.quant.modules import copy_to_quantize
from fewstep.runs import Run
from fewstep.schedules.tuning import SearchOutcome

VAE_RULES = (
    Rule(("*.conv_in", "*.conv_out"), Scheme(8, 16), "first or last layer: its error reaches every pixel"),
    Rule(("quant_conv", "post_quant_conv"), Scheme(8, 16), "between latents and network: small, and all passes it"),
)


def run(recipe: QuantizeRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder with the low-bit parts), the table of every layer in
    `results.json`, and `report.html`.
    """
    recipe.check()
    context = QuantizeContext.open(recipe, run, fuse=True)
    context.check()
    parts = low_parts(context)
    models = {name: part.model for name, part in parts.items()}
    reports = {name: part.report for name, part in parts.items()}
    backbone = reports.get(context.backbone, {})
    low = context.sampler(**models)
    rows = backbone.get("per_step", {}).get("rows", [])
    plan = named_rows(context.plan, rows).replace(identity=identity_of(low.pipe, context.guidance))
    plans = {"rows": plan} if rows else {}
    corrections: dict[str, Any] = {}
    if recipe.corrections:
        corrections, better = correct_plan(context, low, plan)
        if better is not None:
            plans[corrections["kept"]] = plan = better
    tuned: dict[str, Any] = {}
    if recipe.q_sched:
        tuned = run.unit("q-sched", lambda: _tuned(context, low, plan), shared=True)
        plans["Q-Sched"] = scaled(plan, tuned["theta"])
    for name, made in plans.items():
        made.save(run.artifact(f"plan-{slug(name)}.json"), overwrite=True)
    measured = run.unit("measure", lambda: measure(context, parts, plans))
    last = plans.get("Q-Sched", plan)
    whole = partial(low_pipeline, context, models, last, changed=bool(plans))
    run.unit("pipeline", whole, save=save_pipeline, load=lambda folder: None, artifact="pipeline")
    results = context.write_results(
        allocation=backbone.get("allocation", {}),
        parts=reports,
        corrections=corrections,
        q_sched=tuned,
        measured=measured,
        calibration=context.provenance,
    )
    write_layers(results, run.artifact("layers.csv"))
    if not run.quiet:
        import rich
        from rich.markup import escape

        for table in (block_table(results), part_table(results)):
            rich.print(table)
        rich.print(escape(measured["verdict"]))
    return write_report(run, recipe, results)


# --- the parts ------------------------------------------------------------------------------------------------------


def low_parts(context: QuantizeContext) -> dict[str, LowBitPart]:
    """Every part that was asked for, each a unit of its own."""
    found = {}
    for name, source in context.parts.items():
        if name in context.backbones:
            make = partial(low_backbone, context, name)
        elif name.startswith("text_encoder"):
            make = partial(_low_encoder, context, name, source)
        else:
            make = partial(_low_vae, context, source)
        found[name] = low_bit_part(
            context, source, make, unit=f"quantize-{name}", artifact=f"parts/{name}", shared=name in context.backbones
        )
    return found


def _low_encoder(context: QuantizeContext, name: str, source: nn.Module) -> LowBitPart:
    model, calls = copy_to_quantize(source), context.calls[name]
    apart = keep_first_tokens(model, calls) if context.recipe.first_token else []
    truth = replay(model, calls)
    report = quantize(model, context.recipe.text, rules=(), example=spread_calls(calls))
    return LowBitPart(model, {**report.to_dict(), "first_token": apart, "sqnr": sqnr(truth, replay(model, calls))})


def _low_vae(context: QuantizeContext, source: nn.Module) -> LowBitPart:
    model = copy_to_quantize(source)
    return LowBitPart(model, quantize(model, context.recipe.vae, rules=VAE_RULES).to_dict())


# --- the plans and the result ---------------------------------------------------------------------------------------


def _tuned(context: QuantizeContext, low: PipelineSampler, plan: Plan) -> dict[str, Any]:
    """Q-Sched last: two scalars per step, so that the result ends where full precision ends."""
    outcome = searched(context, low, plan, context.recipe.q_sched)
    return {"theta": list(outcome.theta), "value": outcome.value, "untuned": outcome.identity_value}


def searched(
    context: QuantizeContext, low: PipelineSampler, plan: Plan, budget: float, name: str = "q-sched"
) -> SearchOutcome:
    """What Q-Sched finds for a low-bit pipeline that follows `plan`: it is to end where full precision does.

    Args:
        context: of the job.
        low: the low-bit pipeline.
        plan: its plan.
        budget: in passes over the calibration items.
        name: of the search, whose scores are kept under it.
    """
    full = context.sampler(), context.plan
    piece = context.recipe.piece
    return tune_to_full_precision(context.run, context.calibration, full, (low, plan), budget, piece, name)


def low_pipeline(context: QuantizeContext, models: Mapping[str, nn.Module], plan: Plan, changed: bool) -> Any:
    """The pipeline with all low-bit parts, following the plan that was made for it if there is one."""
    pipe = exchanged(context.pipe, models)
    if changed or isinstance(context.pipe.scheduler, PlanScheduler):  # a stored plan knows the weights it is for
        attach(pipe, plan)
    return pipe
