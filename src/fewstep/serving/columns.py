"""What stands side by side: pipelines with a plan each."""

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
from fewstep.pipelines import PipelineSampler, backbone_of, plan_of
from fewstep.pipelines.calls import condition_kind
from fewstep.pipelines.conditions import class_label
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.quant.report import resident_bytes
from fewstep.runs.environment import best_device
from fewstep.runs.folder import RECIPE, is_run


@dataclass(frozen=True, eq=False)
class Column:
    """One way to draw a prompt.

    Attributes:
        name: shown above its pictures; the `model` of the endpoint.
        pipe: the pipeline, which stays as it is.
        plan: its sampler.
        guidance: `guidance_scale` of its calls.
    """

    name: str
    pipe: Pipeline
    plan: Plan
    guidance: float

    def about(self) -> dict[str, Any]:
        """What is told of it: steps, bytes of the network in memory, the plan in one line."""
        return {
            "id": self.name, "object": "model", "owned_by": "fewstep", "steps": self.plan.steps,
            "bytes": resident_bytes(backbone_of(self.pipe)), "plan": self.plan.summary(), "guidance": self.guidance,
        }  # fmt: skip

    def draw(self, prompt: str, seeds: Sequence[int], size: tuple[int, int] | None = None) -> tuple[Tensor, float]:
        """Pictures (B, 3, H, W) in [0, 1], one per seed, and the milliseconds that they took.

        Raises:
            FewstepError: a prompt or a size that the pipeline cannot draw.
            NonFiniteError: the network produced NaN.
        """
        begun = time.perf_counter()
        pictures = self._sampled(self.plan, prompt, seeds, size)
        return pictures, 1000 * (time.perf_counter() - begun)

    def previews(self, prompt: str, seed: int) -> Tensor:
        """What the network takes the picture for in each step, (K, 3, H, W)."""
        plans = [self.plan.stopping_at(k) for k in range(self.plan.steps)]
        return torch.cat([self._sampled(plan, prompt, [seed], None) for plan in plans])

    def _sampled(self, plan: Plan, prompt: str, seeds: Sequence[int], size: tuple[int, int] | None) -> Tensor:
        sampler = PipelineSampler(self.pipe, self.guidance, _sized(self.pipe, size))
        try:
            with torch.no_grad():
                return sampler(plan, _conditions(self.pipe, prompt, len(seeds)), seeds)
        except FewstepError:
            raise
        except ValueError as error:  # how pipelines refuse a size
            raise FewstepError(str(error), value=size, hint="Leave size out for the pipeline's own.") from error


def columns_of(target: str, scheme: str = "w4a8", steps: int = 4, guidance: float | None = None) -> list[Column]:
    """Columns of a run of `q-sched`: full precision, low bit, low bit tuned; of a model: those without tuning, and two
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
    columns = _of_run(place) if place.is_dir() and is_run(place) else _of_model(target, scheme, steps, guidance)
    if "num_frames" in inspect.signature(type(columns[0].pipe).__call__).parameters:
        raise FewstepError("the playground shows pictures, not videos", value=type(columns[0].pipe).__name__)
    return columns


def _of_run(place: Path) -> list[Column]:
    recipe = recipes.load(place / RECIPE)
    folder = place / "artifacts" / "pipeline"
    if recipe.kind != "q-sched":
        raise FewstepError(
            "the playground opens runs of q-sched", value=recipe.kind, hint="Give the pipeline that the run wrote."
        )
    if not folder.is_dir():
        raise FewstepError(
            "the run is not finished", value=str(place), hint="Give the same command again to finish it."
        )
    told = recipe.plain()
    device, guidance = best_device(), float(told["guidance"])
    full, low = fs.load(told["model"]).to(device), fs.load(str(folder)).to(device)
    untuned = plan_of(full, told["steps"], guidance_scale=guidance)
    found = [Column("full precision", full, untuned, guidance), Column(told["scheme"], low, untuned, guidance)]
    tuned = plan_of(low, told["steps"], guidance_scale=guidance)
    if tuned.to_dict()["rows"] != untuned.to_dict()["rows"]:
        found.append(Column(f"{told['scheme']}, tuned", low, tuned, guidance))
    return found


def _of_model(target: str, scheme: str, steps: int, guidance: float | None) -> list[Column]:
    full = fs.load(target).to(best_device())
    plan = getattr(full.scheduler, "plan", None)
    steps = plan.steps if plan is not None else steps
    scale = guidance if guidance is not None else (plan.identity.guidance if plan is not None else None) or 1.0
    own = plan_of(full, steps, guidance_scale=scale)
    found = [Column("full precision", full, own, scale)]
    if scheme != "none":
        found.append(Column(scheme, fs.quantize(full, scheme, progress=False), own, scale))
    if plan is None:  # a plan of its own has one number of steps
        others = [k for k in (max(1, steps // 2), 2 * steps) if k != steps]
        found += [Column(f"{k} steps", full, plan_of(full, k, guidance_scale=scale), scale) for k in others]
    return found


def _conditions(pipe: Pipeline, prompt: str, count: int) -> list[Any] | None:
    kind = condition_kind(pipe)
    if kind == "prompt":
        return [prompt] * count
    return [class_label(pipe, prompt)] * count if kind == "class_labels" else None


def _sized(pipe: Pipeline, size: tuple[int, int] | None) -> dict[str, Any]:
    if size is None:
        return {}
    if not {"height", "width"} <= inspect.signature(type(pipe).__call__).parameters.keys():
        raise FewstepError("the pipeline has one size", value=f"{size[0]}x{size[1]}", hint="Leave size out.")
    return {"width": size[0], "height": size[1]}
