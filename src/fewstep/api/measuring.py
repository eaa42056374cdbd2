"""`fewstep.diagnose`: what a network does at each noise level, and where its plan errs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.api.open_pipelines import description, run_about
from fewstep.files import write_json
from fewstep.jobs.context import JobContext
from fewstep.jobs.inspect.job import measurements
from fewstep.jobs.inspect.page import page
from fewstep.jobs.inspect.settings import InspectSettings
from fewstep.jobs.pipeline_recipe import PipelineRecipe
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan


def diagnose(
    pipe: Pipeline,
    steps: int = 8,
    *,
    plan: Plan | None = None,
    prompts: Sequence[str] = (),
    guidance: float = 1.0,
    samples: int = 8,
    probes: int = 4,
    fine: int = 3,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> dict[str, Any]:
    """Measure a pipeline's network and the error of its plan row by row; the command is `fewstep diagnose`.

    Args:
        pipe: a diffusers pipeline; it is not changed.
        steps: of its own plan.
        plan: another plan in its place.
        prompts: of a text-to-image pipeline.
        guidance: `guidance_scale` of its calls.
        samples: states that are looked at, at least two.
        probes: random directions of each Jacobian product.
        fine: fine steps that stand for the exact flow in one row.
        seed: of states and probes.
        out: a run directory to keep, with `report.html`.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        `levels`: by noise level the gap to a gradient field, divergence, dimension and denoising loss; `plans`: by plan
        its local and propagated errors of every row; means with intervals.

    Raises:
        FewstepError: fewer than two samples, or a plan of another guidance.
        IdentityError: the plan belongs to another network.
    """
    about = description(pipe)
    settings = InspectSettings.of(
        about["model"], steps=steps, samples=samples, probes=probes, fine=fine, guidance=guidance,
        prompts=tuple(prompts), seed=seed,
    )  # fmt: skip
    recipe = PipelineRecipe(kind="inspect", guidance=guidance, call=call, **about)
    more = {} if plan is None else {"plan": plan.origin}
    with run_about(pipe, {**settings.plain(), "call": call, **more}, out, progress) as run:
        results = measurements(JobContext.open(recipe, run, pipe=pipe), settings, plan)
        if out is not None:
            write_json(run.path / "results.json", results)
            page(results, run.path / "report.html")
        return results
