"""A quantization run, unit by unit: open, record, choose bits, quantize each part, measure, report, save."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json, write_tensors
from fewstep.jobs.quantize.backbone import low_backbone
from fewstep.jobs.quantize.choose import file_bytes
from fewstep.jobs.quantize.correct import corrected
from fewstep.jobs.quantize.measure import growth, latency, verdict
from fewstep.jobs.quantize.per_step import named
from fewstep.jobs.quantize.recipe import QuantizeRecipe
from fewstep.jobs.quantize.report import block_table, part_table, write_layers, write_report
from fewstep.pipelines import (
    PipelineSampler,
    attach,
    backbones_of,
    exchanged,
    fuse_adapters,
    identity_of,
    plan_of,
    save_pipeline,
)
from fewstep.pipelines.conditions import conditions_of
from fewstep.plan import Plan
from fewstep.plan.scheduler import PlanScheduler
from fewstep.quant import QuantReport, Rule, Scheme, quantize
from fewstep.quant.bos import separate
from fewstep.quant.encoders import quantize_encoder
from fewstep.quant.sensitivity import Call, recording, replay, sqnr, ssim
from fewstep.runs import Run, environment
from fewstep.schedules import TeacherMatch
from fewstep.schedules.tuning import Family, Problem, SearchOutcome, searcher

VAE_RULES = (
    Rule(("*.conv_in", "*.conv_out"), Scheme(8, 16), "first or last layer: its error reaches every pixel"),
    Rule(("quant_conv", "post_quant_conv"), Scheme(8, 16), "between latents and network: small, and all passes it"),
)

SHOWN = 6
"""Held-out pictures on the page."""

FAMILY = Family("ramp")
"""Of the scalars that Q-Sched searches."""


def run(recipe: QuantizeRecipe, run: Run) -> Path:
    """Execute a recipe in a run directory and return the report.

    Leaves behind: `artifacts/pipeline` (a diffusers folder with the low-bit parts), the table of every layer in
    `results.json`, and `report.html`.
    """
    recipe.check()
    job = QuantizeJob(recipe, run)
    job.quantize()
    job.correct()
    job.tune()
    results = {
        "recipe": recipe.plain(),
        "environment": environment(),
        "allocation": job.allocation,
        "parts": job.parts,
        "corrections": job.corrections,
        "q_sched": job.tuned,
        "measured": run.unit("measure", job.measure),
        "calibration": job.provenance,
    }
    run.unit("pipeline", job.finished, save=save_pipeline, load=lambda folder: None, artifact="pipeline")
    results["seconds"] = run.seconds()
    write_json(run.path / "results.json", results)
    write_layers(results, run.artifact("layers.csv"))
    if recipe.results:
        write_json(recipe.results, results)
    if not run.quiet:
        import rich
        from rich.markup import escape

        for table in (block_table(results), part_table(results)):
            rich.print(table)
        rich.print(escape(results["measured"]["verdict"]))
    return write_report(run, recipe, results)


class QuantizeJob:
    """What the units share: the full-precision pipeline, its plan, and the low-bit parts made so far."""

    def __init__(self, recipe: QuantizeRecipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        self.device, self.pipe = recipe.place, recipe.opened()
        fuse_adapters(self.pipe)
        self.guidance = max(1.0, recipe.guidance)
        self._check_parts()
        plan = plan_of(self.pipe, recipe.steps, guidance_scale=recipe.guidance or None, **recipe.call)
        found = identity_of(self.pipe, self.guidance)
        plan.check(found)
        self.plan: Plan = plan.replace(identity=found)
        self.allocation: dict[str, Any] = {}
        self.parts: dict[str, dict[str, Any]] = {}
        self.low: dict[str, nn.Module] = {}
        self.corrections: dict[str, Any] = {}
        self.tuned: dict[str, Any] = {}
        self.plans: dict[str, Plan] = {}

    # --- what everything is measured on -----------------------------------------------------------------------------

    @cached_property
    def items(self) -> tuple[list[Any] | None, list[int]]:
        """Calibration conditions and seeds."""
        settings = self.recipe.calibration
        source = self.recipe.prompts(settings.conditions, held_out=False)
        seeds = [3_000_017 * (settings.seed + 1) + i for i in range(settings.items)]
        return conditions_of(self.pipe, source, settings.items), seeds

    @property
    def provenance(self) -> dict[str, Any]:
        """What the calibration was, for the record."""
        conditions, seeds = self.items
        return {"conditions": conditions, "seeds": seeds, "times": [float(row.network_time) for row in self.plan.rows]}

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """Calls of every network while the calibration items are drawn in full precision."""
        conditions, seeds = self.items
        with ExitStack() as stack, torch.no_grad():
            found = {
                name: stack.enter_context(recording(part))
                for name, part in self.pipe.components.items()
                if isinstance(part, nn.Module)
            }
            self.with_parts()(self.plan, conditions, seeds, output="latent")
        return found

    def with_parts(self, **parts: nn.Module) -> PipelineSampler:
        """A generator of the pipeline with some parts exchanged; prompts are encoded anew."""
        return PipelineSampler(
            exchanged(self.pipe, parts), self.recipe.guidance, dict(self.recipe.call), self.recipe.batch
        )

    def drawing(self, name: str, output: str = "image") -> Callable[[nn.Module], Tensor]:
        """(backbone of this name) -> images, or latents, of the calibration items."""
        conditions, seeds = self.items
        generate = self.with_parts()

        def draw(model: nn.Module) -> Tensor:
            setattr(generate.pipe, name, model)
            with torch.no_grad():
                return generate(self.plan, conditions, seeds, output)

        return draw

    @cached_property
    def backbones(self) -> dict[str, nn.Module]:
        """The networks that denoise."""
        return backbones_of(self.pipe)

    @property
    def backbone(self) -> str:
        """Name of the component that denoises, the first where there are two."""
        return next(iter(self.backbones))

    def _check_parts(self) -> None:
        low = [name for name, part in self.pipe.components.items() if getattr(part, "hf_quantizer", None) is not None]
        if low and set(low) & {*self.backbones, *("vae", "text_encoder")}:
            hint = "Open the pipeline that it was made from."
            raise FewstepError("a part of the pipeline is quantized already", value=low, hint=hint)
        if len(self.backbones) > 1 and self.recipe.per_step:
            hint = "Leave per_step out."
            raise FewstepError("bits per step are chosen for one network", value=list(self.backbones), hint=hint)

    # --- the parts --------------------------------------------------------------------------------------------------

    def quantize(self) -> None:
        """Every part that was asked for, each a unit of its own."""
        wanted = self.recipe.parts
        for name, part in self.pipe.components.items():
            if not isinstance(part, nn.Module):
                continue
            if name in self.backbones and "backbone" in wanted:
                self._part(name, part, partial(low_backbone, self, name))
            elif name.startswith("text_encoder") and "text" in wanted:
                self._part(name, part, partial(self._low_encoder, name, part))
            elif name in ("vae", "vqvae") and "vae" in wanted:
                self._part(name, part, partial(self._low_vae, part))
        if not self.low:
            raise FewstepError("the pipeline has none of these parts", value=wanted, hint="Add backbone.")

    def _part(self, name: str, source: Any, make: Callable[[], tuple[nn.Module, QuantReport, dict[str, Any]]]) -> None:
        """Quantize one part and read it back from its file, so that what is measured is what was saved."""

        def save(made: tuple[nn.Module, QuantReport, dict[str, Any]], draft: Path) -> None:
            model: Any = made[0]
            model.save_pretrained(draft)
            write_json(draft / "quantization.json", {**made[1].to_dict(), **made[2]})

        def load(folder: Path) -> Any:
            self.parts[name] = {**read_json(folder / "quantization.json"), "file_bytes": file_bytes(folder)}
            model = type(source).from_pretrained(folder, dtype=getattr(torch, self.recipe.dtype))
            return model.to(self.device).eval().requires_grad_(False)

        if not hasattr(source, "save_pretrained"):
            raise FewstepError(f"{name} cannot be saved", value=type(source).__name__, hint="Leave this part out.")
        self.low[name] = self.run.unit(f"quantize-{name}", make, save=save, load=load, artifact=f"parts/{name}")

    def _low_encoder(self, name: str, source: nn.Module) -> tuple[nn.Module, QuantReport, dict[str, Any]]:
        model, calls = copy.deepcopy(source), self.calls[name]
        apart = separate(model, calls) if self.recipe.first_token else []
        truth = replay(model, calls)
        ours = type(source).__module__.startswith("diffusers")
        report = (quantize if ours else quantize_encoder)(model, self.recipe.text, rules=())
        return model, report, {"first_token": apart, "sqnr": sqnr(truth, replay(model, calls))}

    def _low_vae(self, source: nn.Module) -> tuple[nn.Module, QuantReport, dict[str, Any]]:
        model = copy.deepcopy(source)
        return model, quantize(model, self.recipe.vae, rules=VAE_RULES), {}

    # --- the proof --------------------------------------------------------------------------------------------------

    def finished(self) -> Any:
        """The pipeline with all low-bit parts, following the plan that was made for it if there is one."""
        pipe = exchanged(self.pipe, self.low)
        if self.plans or isinstance(self.pipe.scheduler, PlanScheduler):  # a stored plan knows the weights it is for
            attach(pipe, list(self.plans.values())[-1] if self.plans else self.base)
        return pipe

    @property
    def rows(self) -> list[int]:
        """The table of bits of each row; nothing where all rows run alike."""
        return list(self.parts.get(self.backbone, {}).get("per_step", {}).get("rows", []))

    @cached_property
    def base(self) -> Plan:
        """The plan of the low-bit pipeline before anything is corrected or searched."""
        low = exchanged(self.pipe, self.low)
        return named(self.plan, self.rows).replace(identity=identity_of(low, self.guidance))

    def correct(self) -> None:
        """The plan with the best correction of the mean errors, if one helps."""
        self.allocation = self.parts.get(self.backbone, {}).get("allocation", {})
        if self.rows:
            self._keep("rows", self.base)
        if self.recipe.corrections:
            self.corrections, plan = corrected(self, self.base, self.recipe.corrections)
            if plan is not None:
                self._keep(self.corrections["kept"], plan)

    def _keep(self, name: str, plan: Plan) -> None:
        plan.save(self.run.artifact(f"plan-{name.lower()}.json"), overwrite=True)
        self.plans[name] = plan

    def tune(self) -> None:
        """Q-Sched last: two scalars per step, so that the result ends where full precision ends."""
        if not self.recipe.q_sched:
            return
        low = self.with_parts(**self.low)
        base = list(self.plans.values())[-1] if self.plans else self.base

        def compute() -> dict[str, Any]:
            log = self.run.scratch("q-sched") / "scores.jsonl"
            outcome = self.searched(low, base, self.recipe.q_sched, log)
            return {"theta": list(outcome.theta), "value": outcome.value, "untuned": outcome.identity_value}

        self.tuned = self.run.unit("q-sched", compute)
        self._keep("Q-Sched", scaled(base, self.tuned["theta"]))

    def searched(self, low: PipelineSampler, base: Plan, budget: float, log: Path) -> SearchOutcome:
        """What Q-Sched finds for a low-bit pipeline that follows `base`: ends where full precision does.

        Args:
            budget: in passes over the calibration items.
            log: where the scores go; continued if it exists.
        """
        conditions, seeds = self.items

        def generate(plan: Plan, some: Any) -> Tensor:
            kinds = None if conditions is None else [conditions[i] for i in some]
            return low(plan, kinds, [seeds[i] for i in some], output="latent")

        with torch.no_grad():
            truth = self.with_parts()(self.plan, conditions, seeds, output="latent")
        problem = Problem(base, FAMILY, TeacherMatch(generate, truth), log=log)
        searcher("coarse-to-fine")(problem, budget, 0)
        return problem.outcome()

    def measure(self) -> dict[str, Any]:
        """Pictures on held-out conditions, bytes, memory and time: before, each part alone, all together."""
        settings = self.recipe.evaluation
        conditions = conditions_of(self.pipe, self.recipe.prompts(settings.conditions, held_out=True), settings.items)
        seeds = [1_000_003 * 101 + i for i in range(settings.items)]
        full, low = self.with_parts(), self.with_parts(**self.low)
        plain = self.base if self.rows else self.plan
        later = {name: plan for name, plan in self.plans.items() if name != "rows"}
        alone = list(self.low) if len(self.low) == 1 else []
        single = {} if alone else {name: self.with_parts(**{name: model}) for name, model in self.low.items()}
        with torch.no_grad():
            truth = full(self.plan, conditions, seeds)
            pictures = {
                name: _fidelity(truth, made(plain if name == self.backbone else self.plan, conditions, seeds))
                for name, made in single.items()
            }
            drawn = {"0 before": truth, "1 after": low(plain, conditions, seeds)}
            pictures["all"] = _fidelity(truth, drawn["1 after"])
            for k, (name, plan) in enumerate(later.items()):
                drawn[f"{k + 2} after + {name}"] = images = low(plan, conditions, seeds)
                pictures[f"all + {name}"] = _fidelity(truth, images)
        self._show(drawn)
        one = None if conditions is None else conditions[:1]
        draws = {
            name: lambda made=made, plan=plan: made(plan, one, seeds[:1])
            for name, made, plan in (("before", full, self.plan), ("after", low, plain))
        }
        with torch.no_grad():
            peaks = {name: growth(draw, torch.device(self.device)) for name, draw in draws.items()}
        milliseconds = latency(draws, settings.rounds) if settings.rounds else {}
        rows = [row for part in self.parts.values() for row in part["rows"]]
        return {
            "pictures": pictures, "items": settings.items, "peak_growth": peaks, "milliseconds": milliseconds,
            "verdict": verdict(milliseconds, rows),
        }  # fmt: skip

    def _show(self, drawn: dict[str, Tensor]) -> None:
        """Keep the first pictures of each, as bytes, for the page; nothing for videos."""
        stacks = {
            name: (255 * images[:SHOWN].clamp(0, 1)).round().byte()
            for name, images in drawn.items() if images.ndim == 4
        }  # fmt: skip
        write_tensors(self.run.artifact("pictures.safetensors"), stacks)


def scaled(plan: Plan, theta: Sequence[float]) -> Plan:
    """The plan with the two scalars per step that `Job.searched` found."""
    return FAMILY.apply(plan, torch.tensor(theta, dtype=torch.float64))


def _fidelity(truth: Tensor, found: Tensor) -> dict[str, float]:
    error = float((truth - found).square().mean())
    psnr = -10 * torch.tensor(max(error, 1e-20)).log10()
    return {"psnr": float(psnr), "ssim": ssim(truth, found)}
