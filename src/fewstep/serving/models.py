"""What is served side by side: pipelines with a plan each."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.pipelines import PipelineSampler, backbone_of, fuse_adapters, plan_of
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.conditions import class_label
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant.report import resident_bytes
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


def served_models(
    target: str, scheme: str = "w4a8", steps: int = 4, guidance: float | None = None
) -> list[ServedModel]:
    """Of a run of `q-sched`: full precision, low bit, low bit tuned; of a model: those without tuning, and two
    other numbers of steps.

    Args:
        target: a run directory; or a shipped name, a diffusers folder or a hub id.
        scheme: of the low-bit column of a model.
        steps: of a model that has no plan of its own.
        guidance: of a model; that of its plan unless given, and 1, without, where it says none.

    Raises:
        FewstepError: a run of another kind or one that is not finished, or a pipeline of videos.
    """
    place = Path(target)
    found = _of_run(place) if place.is_dir() and is_run(place) else _of_model(target, scheme, steps, guidance)
    pipe = found[0].sampler.pipe
    if "num_frames" in inspect.signature(type(pipe).__call__).parameters:
        raise FewstepError("the playground shows pictures, not videos", value=type(pipe).__name__)
    return found


def _of_run(place: Path) -> list[ServedModel]:
    recipe = recipes.load(place / RECIPE)
    folder = place / "artifacts" / "pipeline"
    if not isinstance(recipe, QSchedRecipe):
        hint = "Give the pipeline that the run wrote."
        raise FewstepError("the playground opens runs of q-sched", value=recipe.kind, hint=hint)
    if not folder.is_dir():
        hint = "Give the same command again to finish it."
        raise FewstepError("the run is not finished", value=str(place), hint=hint)
    full, low = recipe.opened(), recipe.model_copy(update={"model": str(folder), "variant": ""}).opened()
    fuse_adapters(full)  # as the run measured it
    guided = {"guidance_scale": recipe.guidance or None}
    untuned, tuned = (plan_of(pipe, recipe.steps, **guided, **recipe.call) for pipe in (full, low))
    plain, quantized = (PipelineSampler(pipe, recipe.guidance, dict(recipe.call)) for pipe in (full, low))
    found = [ServedModel("full precision", plain, untuned), ServedModel(recipe.scheme, quantized, untuned)]
    if tuned.to_dict()["rows"] != untuned.to_dict()["rows"]:
        found.append(ServedModel(f"{recipe.scheme}, tuned", quantized, tuned))
    return found


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
