"""What is served side by side: pipelines with a plan each, and the front of a choice, point by point."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.auto.context import AutoContext
from fewstep.jobs.auto.points import Point
from fewstep.jobs.auto.recipe import AutoRecipe
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.pipelines import PipelineSampler, backbone_of, fuse_adapters, plan_of
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.conditions import class_label
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant.report import resident_bytes
from fewstep.runs import Run
from fewstep.runs.environment import best_device
from fewstep.runs.folder import RECIPE, is_run


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One way to draw a prompt.

    Attributes:
        name: shown above its pictures; the `model` of the endpoint.
        sampler: of the pipeline, which stays as it is.
        plan: its steps.
    """

    name: str
    sampler: PipelineSampler
    plan: Plan

    def about(self) -> dict[str, Any]:
        """What is told of it: steps, bytes of the network in memory, the plan in one line."""
        return {
            "id": self.name, "object": "model", "owned_by": "fewstep", "steps": self.plan.steps,
            "bytes": resident_bytes(backbone_of(self.sampler.pipe)), "plan": self.plan.summary(),
            "guidance": self.sampler.guidance,
        }  # fmt: skip

    def draw(self, prompt: str, seeds: Sequence[int], size: tuple[int, int] | None = None) -> tuple[Tensor, float]:
        """Pictures (B, 3, H, W) in [0, 1], one per seed, and the milliseconds that they took.

        Raises:
            FewstepError: a prompt or a size that the pipeline cannot draw.
            NonFiniteError: the network produced NaN.
        """
        begun = time.perf_counter()
        sampler = self.sampler if size is None else _of_size(self.sampler, *size)
        return self._sampled(sampler, self.plan, prompt, seeds), 1000 * (time.perf_counter() - begun)

    def previews(self, prompt: str, seed: int) -> list[Tensor]:
        """What the network takes the picture (3, H, W) for in every step but the last, which gives it."""
        plans = [self.plan.stopping_at(k) for k in range(self.plan.steps - 1)]
        return [self._sampled(self.sampler, plan, prompt, [seed])[0] for plan in plans]

    def _sampled(self, sampler: PipelineSampler, plan: Plan, prompt: str, seeds: Sequence[int]) -> Tensor:
        try:
            with torch.no_grad():
                return sampler(plan, _conditions(sampler.pipe, prompt, len(seeds)), seeds)
        except FewstepError:
            raise
        except ValueError as error:  # how pipelines refuse a size
            raise FewstepError(str(error), value=sampler.call, hint="Leave size out for the pipeline's own.") from error


@dataclass(frozen=True, eq=False)
class Served:
    """What a playground offers.

    Attributes:
        models: the columns, at least one.
        points: what the front of a choice shows: name, bytes, milliseconds and distance of each point.
        load_point: opens the point of a number as a further column; needed where there are points.
    """

    models: Sequence[ServedModel]
    points: Sequence[dict[str, Any]] = ()
    load_point: Callable[[int], ServedModel] | None = None

    def point(self, number: int) -> ServedModel:
        """The point of a number, opened.

        Raises:
            FewstepError: there is no such point.
        """
        if self.load_point is None or not 0 <= number < len(self.points):
            count = len(self.points)
            hint = f"Points are 0 to {count - 1}." if count else "Give a run of auto, which has a front."
            raise FewstepError("there is no such point", value=number, hint=hint)
        return self.load_point(number)


def served(target: str, scheme: str = "w4a8", steps: int = 4, guidance: float | None = None) -> Served:
    """Of a run of `q-sched`: full precision, low bit, low bit tuned; of one of `auto`: the reference and the chosen
    point, the others when they are asked for; of a model: full precision, low bit, and two other numbers of steps.

    Args:
        target: a run directory; or a shipped name, a diffusers folder or a hub id.
        scheme: of the low-bit column of a model.
        steps: of a model that has no plan of its own.
        guidance: of a model; that of its plan unless given, and 1, without, where it says none.

    Raises:
        FewstepError: a run of another kind or one that is not finished, or a pipeline of videos.
    """
    place = Path(target)
    if place.is_dir() and is_run(place):
        recipe = recipes.load(place / RECIPE)
        found = _of_choice(place, recipe) if isinstance(recipe, AutoRecipe) else Served(_of_run(place, recipe))
    else:
        found = Served(_of_model(target, scheme, steps, guidance))
    pipe = found.models[0].sampler.pipe
    if "num_frames" in inspect.signature(type(pipe).__call__).parameters:
        raise FewstepError("the playground shows pictures, not videos", value=type(pipe).__name__)
    return found


def _of_run(place: Path, recipe: Any) -> list[ServedModel]:
    if not isinstance(recipe, QSchedRecipe):
        hint = "Give the pipeline that the run wrote."
        raise FewstepError("the playground opens runs of q-sched and auto", value=recipe.kind, hint=hint)
    folder = _finished(place)
    full, low = recipe.opened(), recipe.model_copy(update={"model": str(folder), "variant": ""}).opened()
    fuse_adapters(full)  # as the run measured it
    guided = {"guidance_scale": recipe.guidance or None}
    untuned, tuned = (plan_of(pipe, recipe.steps, **guided, **recipe.call) for pipe in (full, low))
    plain, quantized = (PipelineSampler(pipe, recipe.guidance, dict(recipe.call)) for pipe in (full, low))
    found = [ServedModel("full precision", plain, untuned), ServedModel(recipe.scheme, quantized, untuned)]
    if tuned.to_dict()["rows"] != untuned.to_dict()["rows"]:
        found.append(ServedModel(f"{recipe.scheme}, tuned", quantized, tuned))
    return found


def _of_choice(place: Path, recipe: AutoRecipe) -> Served:
    folder = _finished(place, "results.json")
    results = read_json(place / "results.json")
    front = [Point(**point) for point in results["front"]]
    with Run(place, recipe.plain(), quiet=True) as run:
        context = AutoContext.open(recipe, run, fuse=True)
        reference = ServedModel("reference", context.sampler(), context.reference)

    def load_point(number: int) -> ServedModel:
        point = front[number]
        with Run(place, recipe.plain(), quiet=True) as run:  # what is in low bits lies in the run directory
            models = replace(context, run=run).low(point.scheme, point.parts)
        return ServedModel(point.name, context.sampler(**models), context.plan_named(point.plan))

    pipe: Any = recipe.model_copy(update={"model": str(folder), "variant": ""}).opened()
    shared = reference.sampler  # the same guidance, call and noise; prompts may be encoded in low bits
    sampler = PipelineSampler(pipe, shared.guidance, shared.call, noise_like=shared.noise_like)
    chosen = ServedModel("chosen", sampler, pipe.scheduler.plan)
    points = [
        {
            "name": point.name, "plan": point.plan, "bytes": point.size, "milliseconds": row["milliseconds"],
            "distance": row["distance"]["mean"], "chosen": k == results["chosen"],
        }
        for k, (point, row) in enumerate(zip(front, results["measured"], strict=True))
    ]  # fmt: skip
    return Served([reference, chosen], points, load_point)


def _finished(place: Path, *files: str) -> Path:
    """The pipeline that a run wrote at its end, with these files beside it."""
    folder = place / "artifacts" / "pipeline"
    if not folder.is_dir() or not all((place / name).is_file() for name in files):
        hint = "Give the same command again to finish it."
        raise FewstepError("the run is not finished", value=str(place), hint=hint)
    return folder


def _of_model(target: str, scheme: str, steps: int, guidance: float | None) -> list[ServedModel]:
    full = fs.load(target).to(best_device())
    plan = getattr(full.scheduler, "plan", None)
    steps = plan.steps if plan is not None else steps
    scale = guidance if guidance is not None else (plan.identity.guidance if plan is not None else None) or 1.0
    own, sampler = plan_of(full, steps, guidance_scale=scale), PipelineSampler(full, scale)
    found = [ServedModel("full precision", sampler, own)]
    if scheme != "none":
        low = fs.quantize(full, scheme, progress=False)
        found.append(ServedModel(scheme, PipelineSampler(low, scale), own))
    if plan is None:  # a plan of its own has one number of steps
        others = [k for k in (max(1, steps // 2), 2 * steps) if k != steps]
        found += [ServedModel(f"{k} steps", sampler, plan_of(full, k, guidance_scale=scale)) for k in others]
    return found


def _conditions(pipe: Pipeline, prompt: str, count: int) -> list[Any] | None:
    kind = condition_kind(pipe)
    if kind == "prompt":
        return [prompt] * count
    return [class_label(pipe, prompt)] * count if kind == "class_labels" else None


def _of_size(sampler: PipelineSampler, width: int, height: int) -> PipelineSampler:
    if not {"height", "width"} <= inspect.signature(type(sampler.pipe).__call__).parameters.keys():
        raise FewstepError("the pipeline has one size", value=f"{width}x{height}", hint="Leave size out.")
    return sampler.changed(call={**sampler.call, "width": width, "height": height})
