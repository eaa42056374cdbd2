"""Measure a pipeline: Jacobian diagnostics over noise levels, and the errors of its plan and of others in its place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Denoiser
from fewstep.diagnostics import conservativity, equalised_grid, noisy, trace_dimension, truncation
from fewstep.diagnostics.field import per_number
from fewstep.executor import Noise
from fewstep.files import write_json
from fewstep.jobs.context import Items, JobContext, tensor_unit
from fewstep.jobs.inspect.page import page
from fewstep.jobs.inspect.settings import InspectSettings
from fewstep.jobs.pipeline_recipe import PipelineRecipe
from fewstep.metrics.intervals import mean_interval
from fewstep.pipelines import plan_of
from fewstep.pipelines.calls import class_count, condition_kind
from fewstep.pipelines.network import pipeline_network
from fewstep.plan import Plan
from fewstep.process import Process, VPDiscrete
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.solvers import Grid, grids

LEVELS = 8
"""Noise levels at which the network is looked at."""
ALTERNATIVES: dict[str, Callable[..., Plan]] = {
    "DDIM": solvers.ddim,
    "DPM-Solver++ 2M": solvers.dpm_solver_pp_2m,
    "UniPC": solvers.unipc,
}
"""What is tried in the place of the pipeline's own plan."""


def inspect(settings: InspectSettings, run: Run, **call: Any) -> Path:
    """Measure, write results.json and report.html, and return the report's path.

    Args:
        settings: what to inspect.
        run: the run directory.
        call: further arguments of the pipeline's call (`height`, `width`, ...).

    Raises:
        FewstepError: a model that cannot be opened, or a plan that does not fit it.
    """
    plan = None if settings.plan is None else Plan.load(settings.plan)
    recipe = PipelineRecipe(
        kind="inspect", model=settings.model, guidance=settings.guidance, call=call, variant=settings.variant
    )
    results = measurements(JobContext.open(recipe, run), settings, plan)
    write_json(run.path / "results.json", results)
    return page(results, run.path / "report.html")


def measurements(context: JobContext[PipelineRecipe], settings: InspectSettings, plan: Plan | None) -> dict[str, Any]:
    """What is measured of a pipeline and its plan, as JSON values.

    Args:
        context: of the job.
        settings: how much is measured.
        plan: the pipeline's own unless given.
    """
    own = _own_plan(context, settings, plan)
    items = _items(context, settings)
    # what the pipeline's own plan ends in stands for data
    data = tensor_unit(context.run, "samples", lambda: _drawn(context, items, own), "samples")["data"].to(
        context.recipe.place
    )
    subject = Subject(settings, context.run, _denoiser(context, items), data)
    return {
        "settings": settings.plain(),
        "environment": environment(),
        "network": {
            "pipeline": type(context.pipe).__name__,
            "process": type(context.process).__name__,
            "prediction": context.prediction.kind,
            "shape": list(data.shape[1:]),
        },
        "levels": [noise_level(subject, rho) for rho in noise_levels(context.process)],
        "plans": plans(subject, own),
    }


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: the pipeline's network with its guidance and conditions bound, and samples that stand for data.

    Args:
        settings: how much is measured.
        run: its units keep the measurements.
        denoiser: the network.
        data: clean states (N, ...), one per condition.
    """

    settings: InspectSettings
    run: Run
    denoiser: Denoiser
    data: Tensor

    @property
    def process(self) -> Process:
        """Of the network."""
        return self.denoiser.process


def _items(context: JobContext[PipelineRecipe], settings: InspectSettings) -> Items:
    seeds = list(range(settings.seed, settings.seed + settings.samples))
    kind = condition_kind(context.pipe)
    if kind == "batch_size":
        return Items(None, seeds)
    if kind == "class_labels":
        return Items([seed % class_count(context.pipe) for seed in seeds], seeds)
    prompts = settings.prompts or ("",)
    return Items([prompts[i % len(prompts)] for i in range(len(seeds))], seeds)


def _own_plan(context: JobContext[PipelineRecipe], settings: InspectSettings, plan: Plan | None) -> Plan:
    if plan is not None:
        plan.check(dataclasses.replace(context.identity, guidance=settings.guidance))
        return plan
    stored = getattr(context.pipe.scheduler, "plan", None)
    steps = stored.steps if stored is not None else settings.steps
    guided = {"guidance_scale": settings.guidance} if settings.guidance != 1 else {}
    return plan_of(context.pipe, steps, **guided, **context.recipe.call)


def _denoiser(context: JobContext[PipelineRecipe], items: Items) -> Denoiser:
    network = pipeline_network(context.sampler(), items.conditions, items.seeds)
    return Denoiser(network, context.process, context.prediction)


def _drawn(context: JobContext[PipelineRecipe], items: Items, plan: Plan) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"data": items.draw(context.sampler(), plan, "latent")}


# --- the network over noise levels ----------------------------------------------------------------------------------


def noise_levels(process: Process) -> list[float]:
    """Ratios sigma / alpha from noisy to clean, equally spaced in their logarithm, inside what the process has."""
    last = process.alpha(process.noisiest)
    most = min(process.sigma(process.noisiest) / last if last > 0 else math.inf, 20.0)
    least = max(process.sigma(0.0) / process.alpha(0.0), 0.02)
    return torch.logspace(math.log10(0.999 * most), math.log10(1.001 * least), LEVELS, dtype=torch.float64).tolist()


def noise_level(subject: Subject, rho: float) -> dict[str, Any]:
    """Gap, divergence, dimension and denoising loss at one noise level."""

    def compute() -> dict[str, Any]:
        t = subject.process.time(-math.log(rho))
        generator = torch.Generator().manual_seed(subject.settings.seed)
        found = conservativity(subject.denoiser, subject.data, t, probes=subject.settings.probes, generator=generator)
        dimension = trace_dimension(
            subject.denoiser, subject.data, t, probes=subject.settings.probes, generator=generator.manual_seed(1)
        )
        x = noisy(subject.process, subject.data, t, generator.manual_seed(2))
        noise = (x - subject.process.alpha(t) * subject.data) / subject.process.sigma(t)
        with torch.no_grad():
            loss = per_number(subject.denoiser.predict(x, t, "epsilon") - noise)
        numbers = {"dimension": mean_interval(dimension.cpu()), "loss": mean_interval(loss.cpu())}
        return {**found.as_dict(), **{name: value.as_dict() for name, value in numbers.items()}}

    return subject.run.unit(f"level-{rho:.4g}", compute)


# --- plans ------------------------------------------------------------------------------------------------------


def plans(subject: Subject, own: Plan) -> dict[str, Any]:
    """Local errors and their shares, for the pipeline's plan and for others with as many calls."""
    found = {} if own.stochastic else {"the pipeline's own": _errors(subject, "own", own)}
    if own.stochastic:
        subject.run.say("[yellow]the pipeline's own plan adds noise: it follows no flow and is left out[/yellow]")
    steps = own.steps
    for label, solver in ALTERNATIVES.items():
        plan = solver(subject.process, subject.denoiser.prediction, _grid(subject.process, steps))
        found[label] = _errors(subject, solver.__name__, plan)
    if steps > 1:  # first-order errors have no start of lower order, so few rows are enough to read a density off
        ddim = found["DDIM"]
        grid = equalised_grid(subject.process, ddim["times"], ddim["propagated"], steps)
        plan = solvers.ddim(subject.process, subject.denoiser.prediction, grid)
        found["DDIM, errors equalised"] = _errors(subject, "ddim-equalised", plan)
    return found


def _grid(process: Process, steps: int) -> Grid:
    if isinstance(process, VPDiscrete):
        return grids.trailing(process, steps)
    if process.alpha(process.noisiest) == process.alpha(0.0):  # variance exploding
        return grids.karras(process, steps, 0.02)
    return grids.uniform(process, steps)


def _errors(subject: Subject, name: str, plan: Plan) -> dict[str, Any]:
    shape = tuple(subject.data.shape[1:])

    def compute() -> dict[str, Any]:
        state = (
            Noise(range(subject.settings.seed, subject.settings.seed + subject.settings.samples)).draw(shape)
            * float(plan.prior_scale)
            + plan.prior_offset
        ).to(subject.data)
        legs = plan.steps * (plan.steps + 1) // 2
        with subject.run.progress(f"errors of {name}", legs) as advance:
            found = truncation(
                plan, subject.denoiser, state, fine=subject.settings.fine, watch=lambda done, total: advance()
            )
        assert found.propagated is not None
        assert found.share is not None
        whole = found.final.square().sum().clamp(min=1e-300)
        return {
            "angles": found.angles.tolist(),
            "times": found.times.tolist(),
            "local": found.local.square().mean(1).sqrt().tolist(),
            "propagated": found.propagated.square().mean(1).sqrt().tolist(),
            "share": ((found.share * found.final.square()).sum(1) / whole).tolist(),
            "final": mean_interval(found.final).as_dict(),
            "reference": float(found.reference.square().mean().sqrt()),
        }

    return subject.run.unit(f"plan-{name}", compute)
