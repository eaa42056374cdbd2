"""What the search maximises, and whether what it found holds on items that it did not see.

`jaq` is the published objective. The others compare the features of the calibration pictures as a set with those of
real pictures, of the many-step teacher, or of the few-step pipeline in full precision; docs/systems/q-sched.md shows
how well each ranks candidates by held-out quality.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.data import CaptionedImages, load
from fewstep.data.prompts import load_prompts
from fewstep.jobs.context import JobContext, tensor_unit
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.sharing import SharedRows
from fewstep.metrics import load_features
from fewstep.metrics.intervals import centred_interval, resample_counts
from fewstep.pipelines import PipelineSampler, load_pipeline, plan_of
from fewstep.plan import Plan
from fewstep.rewards import Reward
from fewstep.schedules import DistributionMatch
from fewstep.schedules.tuning import JAQ, Family, items_of
from fewstep.zoo import placed

Context = JobContext[QSchedRecipe]
REFERENCE = 60
"""Pictures that a set is compared with, at most."""
FOUND = 1.96 + 0.84
"""Standard errors of a gain that an interval of 95 % tells from 0 with a probability of 80 %."""
FEWEST = 8
"""Prompts that the search did not see, below which the test draws its own prompts anew."""


@dataclass(frozen=True, eq=False)
class TuningObjective:
    """An objective of any of the pipelines.

    Attributes:
        name: of the recipe.
        of: (sampler, items) -> the objective on these items; one of sets takes pictures to compare with as a third.
        items: (prompt, seed) of the search; the first ones cover all prompts.
        spent: candidates that making it has cost.
    """

    name: str
    of: Callable[..., JAQ | DistributionMatch]
    items: list[tuple[str, int]]
    spent: float = 0.0

    def on(self, sampler: PipelineSampler) -> JAQ | DistributionMatch:
        """The objective of the search for one pipeline."""
        return self.of(sampler, self.items)


def objective_of(
    context: Context, low: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward] | None
) -> TuningObjective:
    """The objective that the recipe names.

    Args:
        context: of the job.
        low: the pipeline that is tuned.
        plan: what it follows untuned.
        rewards: alignment and quality, which only JAQ needs.
    """
    settings = context.recipe.search
    items = items_of(context.recipe.searched(), settings.seeds)
    if rewards is not None:
        return _jaq(context, low, plan, rewards, items)
    features = load_features(placed(settings.features))
    reference = features(_reference(context))

    def of(
        sampler: PipelineSampler, some: Sequence[tuple[str, int]], pictures: Tensor | None = None
    ) -> DistributionMatch:
        def generate(plan: Plan, numbers: Sequence[int]) -> Tensor:
            return sampler(plan, [some[i][0] for i in numbers], [some[i][1] for i in numbers])

        rows = SharedRows(
            context.run, "features", some, lambda plan, numbers: features(generate(plan, numbers)), context.recipe.piece
        )
        aim = reference if pictures is None else features(pictures)
        return DistributionMatch(rows, lambda found: found, aim, len(some), distance="mmd")

    return TuningObjective(settings.objective, of, items)


def _jaq(
    context: Context, low: PipelineSampler, plan: Plan, rewards: tuple[Reward, Reward], items: list[tuple[str, int]]
) -> TuningObjective:
    """JAQ, its two terms standardised over scattered candidates of the quantized pipeline; one alone needs no scale."""
    settings = context.recipe.search
    plain = JAQ(low, *rewards, context.recipe.searched(), settings.seeds, context.recipe.rewards.k)

    def on(sampler: PipelineSampler, some: Sequence[tuple[str, int]]) -> JAQ:
        mine = dataclasses.replace(plain, generate=sampler)
        mine.items = list(some)
        mine.shared = SharedRows(context.run, "rewards", mine.items, mine.own_terms, context.recipe.piece)
        return mine

    def compute() -> dict[str, Any]:
        jaq = on(low, items)
        spent = jaq.standardise(plan, Family(low=settings.low, high=settings.high))
        return {"centre": jaq.centre, "spread": jaq.spread, "spent": spent}

    alone: dict[str, Any] = {"centre": [0.0, 0.0], "spread": [1.0, 1.0], "spent": 0.0}
    found = context.run.unit("standardise", compute, shared=True) if context.recipe.rewards.both else alone

    def of(sampler: PipelineSampler, some: Sequence[tuple[str, int]]) -> JAQ:
        mine = on(sampler, some)
        mine.centre, mine.spread = tuple(found["centre"]), tuple(found["spread"])
        return mine

    return TuningObjective("jaq", of, items, found["spent"])


# --- what sets are compared with ------------------------------------------------------------------------------------


def _reference(context: Context) -> Tensor:
    """Pictures of the calibration prompts: real ones, or drawn by the teacher or in full precision."""
    settings = context.recipe.search
    if settings.objective == "real":
        images = load(settings.pictures, "calibration" if settings.pictures == "emoji" else "train").images
        return images[_spread(len(images))]
    name = "reference-teacher" if settings.objective == "teacher" else "reference-full-precision"
    place = f"images/{name}.safetensors"
    return tensor_unit(context.run, name, partial(_drawn, context), place, shared=True)["images"]


def _drawn(context: Context) -> dict[str, Tensor]:
    """Pictures of the calibration prompts under other seeds than those of the search."""
    settings, judged = context.recipe.search, context.recipe.evaluation
    kept = set(context.recipe.held_out())
    prompts = load_prompts([p for p in load_prompts(settings.prompts) if p not in kept], REFERENCE)
    if settings.objective == "teacher":
        pipe = load_pipeline(judged.teacher, dtype=context.pipe.dtype).to(context.pipe.device)
        plan = plan_of(pipe, judged.teacher_steps, guidance_scale=judged.teacher_guidance)
        sampler = PipelineSampler(pipe, judged.teacher_guidance, {}, context.recipe.batch)
    else:
        sampler, plan = context.sampler(), context.plan
    seeds = [100_003 * (max(settings.seeds) + 1000) + i for i in range(len(prompts))]

    def draw(plan: Plan, numbers: Sequence[int]) -> Tensor:
        images = sampler(plan, [prompts[i] for i in numbers], [seeds[i] for i in numbers])
        return (images * 255).round().to(torch.uint8)

    items = list(zip(prompts, seeds, strict=True))
    rows = SharedRows(context.run, f"reference-{settings.objective}", items, draw, context.recipe.batch)
    return {"images": rows(plan, range(len(items)))}


# --- the test -------------------------------------------------------------------------------------------------------


def verdict(
    context: Context, objective: TuningObjective, sampler: PipelineSampler, untuned: Plan, tuned: Plan
) -> dict[str, Any]:
    """Whether the tuned plan is better on items that neither the search nor the evaluation sees: paired by prompt.

    Where there are real pictures: their captions, and the pictures to compare with. Else prompts of the calibration
    list that the search left over, under four new seeds; its own prompts where fewer than eight are left. No prompt of
    the evaluation is among them.

    Returns:
        `gain` (tuned minus untuned, 95 % bootstrap interval over prompts), `tuned` (whether its lower end is above 0),
        `detectable`: the gain that such a test finds in four cases of five.
    """
    settings = context.recipe.search
    if not settings.held_out:
        return {"objective": objective.name, "tuned": True}
    real = None if objective.name == "jaq" else _unseen_pictures(context)
    prompts, unseen = (real.captions, True) if real is not None else _unseen_prompts(context)
    fresh = [max(settings.seeds) + 1 + i for i in range(4 if real is None else 1)]
    items = items_of(prompts, fresh)
    counts, numbers = resample_counts(len(prompts)).repeat(1, len(fresh)), range(len(items))  # seeds go with prompts
    scored = objective.of(sampler, items) if real is None else objective.of(sampler, items, real.images)
    if scored.ahead is not None:
        scored.ahead([(tuned, numbers), (untuned, numbers)])
    (after, draws), (before, other) = (scored.resampled(plan, numbers, counts) for plan in (tuned, untuned))
    gain = centred_interval(after - before, draws - other, len(prompts))
    return {
        "objective": objective.name, "tuned": gain.low > 0, "gain": gain.as_dict(), "untuned_value": before,
        "tuned_value": after, "prompts": len(prompts), "seeds": fresh, "unseen_prompts": unseen,
        "detectable": FOUND * float((draws - other).std()),
        "against": "reference of the search" if real is None else "real pictures",
    }  # fmt: skip


def _unseen_prompts(context: Context) -> tuple[list[str], bool]:
    """Prompts of the test, and whether the search left them over."""
    settings, kept, used = context.recipe.search, set(context.recipe.held_out()), set(context.recipe.searched())
    left = [prompt for prompt in dict.fromkeys(load_prompts(settings.prompts)) if prompt not in used | kept]
    enough = len(left) >= FEWEST
    return load_prompts(left if enough else sorted(used), settings.held_out), enough


def _unseen_pictures(context: Context) -> CaptionedImages | None:
    """Real pictures that neither the search nor the evaluation knows; None where there are too few."""
    settings = context.recipe.search
    if settings.pictures == "none":
        return None
    given = load(settings.pictures)
    known = {*context.recipe.searched(), *context.recipe.held_out()}
    if settings.objective == "real" and settings.pictures != "emoji":  # the emoji of the search are another split
        known |= {given.captions[i] for i in _spread(len(given))}
    left = [i for i, caption in enumerate(given.captions) if caption not in known]
    if len(left) < FEWEST:
        return None
    count = min(settings.held_out, len(left))
    picks = [left[i * len(left) // count] for i in range(count)]
    return CaptionedImages(given.images[picks], [given.captions[i] for i in picks])


def _spread(count: int) -> list[int]:
    """Which of so many real pictures the search compares with."""
    return list(range(0, count, max(1, count // REFERENCE)))[:REFERENCE]
