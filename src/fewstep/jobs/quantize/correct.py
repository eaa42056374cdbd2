"""Corrections of what quantization does on average, folded into the plan and kept where they help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.jobs.context import Items
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.pipelines import PipelineSampler, trace
from fewstep.plan import Plan
from fewstep.quant.corrections import OutputError, compare, ptqd, stepbaq

Found = tuple[dict[str, Any], Plan | None]
Fold = Callable[[Plan, Sequence[OutputError]], Plan]


def correct_plan(context: QuantizeContext, low: PipelineSampler, base: Plan) -> Found:
    """What every correction brought on the calibration items, and the plan of the best one if it beats none.

    Both networks answer on every state that the low-bit pipeline meets; the corrections are alternatives, since each
    is made for the whole of the measured error.

    Args:
        context: of the job; its recipe names the corrections.
        low: the low-bit pipeline.
        base: its plan.
    """
    folds: dict[str, Fold] = {"ptqd": ptqd, "stepbaq": lambda plan, errors: stepbaq(plan, errors, context.process)}

    def compute() -> Found:
        items, full = context.calibration, context.sampler()
        errors = pipeline_errors((low, base), (full, context.plan), items)
        with torch.no_grad():
            truth = items.draw(full, context.plan, "latent")

            def distance(plan: Plan) -> float:
                return float((items.draw(low, plan, "latent") - truth).square().mean())

            tried: dict[str, dict[str, Any]] = {"none": {"error": distance(base)}}
            plans: dict[str, Plan | None] = {"none": None}
            for name in context.recipe.corrections:
                try:
                    plans[name] = plan = folds[name](base, errors)
                    tried[name] = {"error": distance(plan)}
                except FewstepError as error:
                    tried[name] = {"reason": str(error)}
        measured = {name: value["error"] for name, value in tried.items() if "error" in value}
        best = min(measured, key=lambda name: float(measured[name]))
        rows = [{"slope": e.slope, "bias": float(e.bias.abs().max()), "residual": e.residual} for e in errors]
        return {"tried": tried, "kept": best, "rows": rows}, plans[best]

    return context.run.unit("corrections", compute, save=_save, load=_load, artifact="corrections")


def pipeline_errors(
    low: tuple[PipelineSampler, Plan], full: tuple[PipelineSampler, Plan], items: Items
) -> tuple[OutputError, ...]:
    """What quantization does to the output in every row, on the states that the low-bit pipeline meets.

    Args:
        low, full: both pipelines and their plans.
        items: what both draw.
    """
    along = trace(*low, items.conditions, items.seeds)
    seen = trace(*full, items.conditions, items.seeds, along=along)
    return compare(seen.outputs, along.outputs, channels=-1 if along.outputs.ndim == 4 else 0)


def _save(found: Found, draft: Path) -> None:
    draft.mkdir(parents=True, exist_ok=True)
    write_json(draft / "corrections.json", found[0])
    if found[1] is not None:
        found[1].save(draft / "plan.json")


def _load(folder: Path) -> Found:
    plan = folder / "plan.json"
    return read_json(folder / "corrections.json"), Plan.load(plan) if plan.exists() else None
