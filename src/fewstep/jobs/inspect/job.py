"""Measure a pipeline: Jacobian diagnostics over noise levels, and the errors of its plan and of others in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.denoiser import Denoiser
from fewstep.diagnostics import conservativity, equalised_grid, noisy, trace_dimension, truncation
from fewstep.diagnostics.field import per_number
from fewstep.errors import FewstepError
from fewstep.executor import Noise
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.jobs.inspect.page import page
from fewstep.metrics.intervals import mean_interval
from fewstep.pipelines import PipelineSampler, identity_of, load_pipeline, plan_of, process_of
from fewstep.pipelines.calls import class_count, condition_kind
from fewstep.pipelines.network import PipelineNetwork
from fewstep.plan import Plan
from fewstep.process import VPDiscrete
from fewstep.runs import Run
from fewstep.runs.environment import best_device, environment
from fewstep.solvers import Grid, grids

LEVELS = 8
"""Noise levels at which the network is looked at."""
ALTERNATIVES: dict[str, Callable[..., Plan]] = {
    "DDIM": solvers.ddim,
    "DPM-Solver++ 2M": solvers.dpm_solver_pp_2m,
    "UniPC": solvers.unipc,
}
"""What is tried in the place of the pipeline's own plan."""


@dataclass(frozen=True)
class InspectSettings:
    """What to inspect, and how much of it."""

    model: str
    steps: int = 8
    plan: str | None = None
    samples: int = 8
    probes: int = 4
    fine: int = 3
    guidance: float = 1.0
    prompts: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise FewstepError("intervals need two samples", value=self.samples, hint="Use --samples 8.")
        for name in ("steps", "probes", "fine"):
            if getattr(self, name) < 1:
                raise FewstepError(f"{name} must be at least 1", value=getattr(self, name))
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise FewstepError("guidance must be a number of at least 0", value=self.guidance)


def inspect(settings: InspectSettings, run: Run, **call: Any) -> Path:
    """Measure, write results.json and report.html, and return the report's path.

    Args:
        call: further arguments of the pipeline's call (`height`, `width`, ...).

    Raises:
        FewstepError: a model that cannot be opened, or a plan that does not fit it.
    """
    plan = None if settings.plan is None else Plan.load(settings.plan)
    pipe = load_pipeline(settings.model).to(best_device())
    job = _Job(settings, run, pipe, plan, call)
    results = {
        "settings": asdict(settings),
        "environment": environment(),
        "network": job.describe(),
        "levels": [job.level(rho) for rho in job.levels()],
        "plans": job.plans(),
    }
    write_json(run.path / "results.json", results)
    return page(results, run.path / "report.html")


class _Job:
    """One pipeline with its process, its samples and its run."""

    def __init__(self, settings: InspectSettings, run: Run, pipe: Any, plan: Plan | None, call: dict[str, Any]) -> None:
        self.settings, self.run, self.pipe, self.call = settings, run, pipe, call
        self.process, self.prediction = process_of(pipe, **call)
        self.seeds = range(settings.seed, settings.seed + settings.samples)
        self.conditions = self._conditions()
        generator = PipelineSampler(pipe, settings.guidance, call)
        network = PipelineNetwork(generator, self.conditions, self.seeds)
        self.denoiser = Denoiser(network, self.process, self.prediction)
        self.own = self._own_plan(plan)
        self.data = run.unit("samples", lambda: self._draw(generator), save=_save, load=_load).to(best_device())

    def _conditions(self) -> list[Any] | None:
        kind = condition_kind(self.pipe)
        if kind == "batch_size":
            return None
        if kind == "class_labels":
            return [seed % class_count(self.pipe) for seed in self.seeds]
        prompts = self.settings.prompts or ("",)
        return [prompts[i % len(prompts)] for i in range(len(self.seeds))]

    def _own_plan(self, plan: Plan | None) -> Plan:
        if plan is not None:
            plan.check(identity_of(self.pipe, self.settings.guidance))
            return plan
        stored = getattr(self.pipe.scheduler, "plan", None)
        steps = stored.steps if stored is not None else self.settings.steps
        guided = {"guidance_scale": self.settings.guidance} if self.settings.guidance != 1 else {}
        return plan_of(self.pipe, steps, **guided, **self.call)

    def _draw(self, generate: PipelineSampler) -> Tensor:
        """Clean states that stand for data: what the pipeline's own plan ends in."""
        with torch.no_grad():
            return generate(self.own, self.conditions, self.seeds, output="latent")

    def describe(self) -> dict[str, Any]:
        """What the network is."""
        shape = list(self.data.shape[1:])
        name = type(self.process).__name__
        return {
            "pipeline": type(self.pipe).__name__,
            "process": name,
            "prediction": self.prediction.kind,
            "shape": shape,
        }

    # --- the network over noise levels ------------------------------------------------------------------------------

    def levels(self) -> list[float]:
        """Ratios sigma / alpha from noisy to clean, equally spaced in their logarithm, inside what the process has."""
        process = self.process
        last = process.alpha(process.noisiest)
        most = min(process.sigma(process.noisiest) / last if last > 0 else math.inf, 20.0)
        least = max(process.sigma(0.0) / process.alpha(0.0), 0.02)
        return torch.logspace(math.log10(0.999 * most), math.log10(1.001 * least), LEVELS, dtype=torch.float64).tolist()

    def level(self, rho: float) -> dict[str, Any]:
        """Gap, divergence, dimension and denoising loss at one noise level."""

        def compute() -> dict[str, Any]:
            t = self.process.time(-math.log(rho))
            generator = torch.Generator().manual_seed(self.settings.seed)
            found = conservativity(self.denoiser, self.data, t, probes=self.settings.probes, generator=generator)
            dimension = trace_dimension(
                self.denoiser, self.data, t, probes=self.settings.probes, generator=generator.manual_seed(1)
            )
            x = noisy(self.process, self.data, t, generator.manual_seed(2))
            noise = (x - self.process.alpha(t) * self.data) / self.process.sigma(t)
            with torch.no_grad():
                loss = per_number(self.denoiser.predict(x, t, "epsilon") - noise)
            numbers = {"dimension": mean_interval(dimension.cpu()), "loss": mean_interval(loss.cpu())}
            return {**found.as_dict(), **{name: value.as_dict() for name, value in numbers.items()}}

        return self.run.unit(f"level-{rho:.4g}", compute)

    # --- plans ------------------------------------------------------------------------------------------------------

    def plans(self) -> dict[str, Any]:
        """Local errors and their shares, for the pipeline's plan and for others with as many calls."""
        found = {} if self.own.stochastic else {"the pipeline's own": self._errors("own", self.own)}
        if self.own.stochastic:
            self.run.say("[yellow]the pipeline's own plan adds noise: it follows no flow and is left out[/yellow]")
        steps = self.own.steps
        for label, solver in ALTERNATIVES.items():
            plan = solver(self.process, self.prediction, self._grid(steps))
            found[label] = self._errors(solver.__name__, plan)
        if steps > 1:  # first-order errors have no start of lower order, so few rows are enough to read a density off
            ddim = found["DDIM"]
            grid = equalised_grid(self.process, ddim["times"], ddim["propagated"], steps)
            plan = solvers.ddim(self.process, self.prediction, grid)
            found["DDIM, errors equalised"] = self._errors("ddim-equalised", plan)
        return found

    def _grid(self, steps: int) -> Grid:
        if isinstance(self.process, VPDiscrete):
            return grids.trailing(self.process, steps)
        if self.process.alpha(self.process.noisiest) == self.process.alpha(0.0):  # variance exploding
            return grids.karras(self.process, steps, 0.02)
        return grids.uniform(self.process, steps)

    def _errors(self, name: str, plan: Plan) -> dict[str, Any]:
        shape = tuple(self.data.shape[1:])

        def compute() -> dict[str, Any]:
            state = (Noise(self.seeds).draw(shape) * float(plan.prior_scale) + plan.prior_offset).to(self.data)
            legs = plan.steps * (plan.steps + 1) // 2
            with self.run.progress(f"errors of {name}", legs) as advance:
                found = truncation(
                    plan, self.denoiser, state, fine=self.settings.fine, watch=lambda done, total: advance()
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

        return self.run.unit(f"plan-{name}", compute)


def _save(data: Tensor, draft: Path) -> None:
    write_tensors(draft, {"data": data})


def _load(file: Path) -> Tensor:
    return read_tensors(file)["data"]
