"""The evaluation of a Q-Sched run: held-out prompts and seeds, the same for every system; bytes and milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.data.prompts import load_prompts
from fewstep.files import read_tensors
from fewstep.jobs.context import seeds_for, tensor_unit
from fewstep.jobs.q_sched.names import (
    FULL,
    FULL_TUNED,
    LOW,
    LOW_FITTED,
    LOW_TUNED,
    SYSTEMS,
    TEACHER,
    beside,
    plain,
    then_tuned,
)
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.sharing import SharedRows, shared_networks
from fewstep.metrics import evaluate, load_features
from fewstep.metrics.evaluate import Judge
from fewstep.pipelines import PipelineSampler, fuse_adapters, load_pipeline, plan_of
from fewstep.pipelines.calls import backbones_of
from fewstep.plan import Plan
from fewstep.quant import quantize
from fewstep.quant.calls import recording_parts, spread_calls
from fewstep.rewards import load_reward
from fewstep.runs import Run
from fewstep.zoo import placed

ROUNDS = 9
"""Timed images per pipeline; the two take turns, and the median counts."""


System = tuple[PipelineSampler, Plan]
"""A pipeline, and the plan that it follows."""


def measure(recipe: QSchedRecipe, run: Run, systems: Mapping[str, System]) -> dict[str, Any]:
    """Images of every system, their metrics, and the speed of both pipelines, as JSON values."""
    prompts, seeds = recipe.held_out(), recipe.evaluation.seeds
    left_out = len(set(load_prompts(recipe.evaluation.prompts)) & set(recipe.searched()))
    if left_out:
        run.say(f"[yellow]{left_out} prompts of the evaluation are among those of the search: left out.[/yellow]")
    images = {name: _images(run, name, *system, prompts, seeds) for name, system in systems.items()}
    full = systems[FULL][0]
    for model in recipe.evaluation.beside:
        images[beside(model)] = _beside(recipe, run, model, full.pipe, prompts)
    teacher = _teacher(recipe, run, full.pipe, prompts)
    reference = _reference(recipe, run, *systems[FULL], prompts)
    evaluated = partial(_evaluate, recipe, run, images, teacher, reference, prompts)
    return {
        "evaluation": run.unit("evaluate", evaluated, shared=True) | {"left_out": left_out},
        "speed": run.unit("speed", lambda: _speed(systems, prompts[0])),
    }


def load_images(run: Run, name: str, seed: int) -> Tensor:
    """Images (P, 3, H, W) uint8 of a system and seed, as an earlier unit stored them."""
    return read_tensors(run.artifact(_file(name, seed)))["images"]


def _images(run: Run, name: str, generate: PipelineSampler, plan: Plan, prompts: list[str], seeds: list[int]) -> Tensor:
    """(S, P, 3, H, W) uint8; one unit per seed."""
    items = [item for seed in seeds for item in zip(prompts, seeds_for("evaluation", seed, len(prompts)), strict=True)]

    def draw(plan: Plan, numbers: Sequence[int]) -> Tensor:
        images = generate(plan, [items[i][0] for i in numbers], [items[i][1] for i in numbers])
        return (images * 255).round().to(torch.uint8)

    rows = SharedRows(run, f"images/{plain(name)}", items, draw, generate.batch)
    parts = {
        _file(name, seed).removesuffix(".safetensors"): range(k * len(prompts), (k + 1) * len(prompts))
        for k, seed in enumerate(seeds)
    }
    rows.ahead((plan, numbers) for unit, numbers in parts.items() if not run.done(unit))
    found = []
    for unit, numbers in parts.items():
        compute = partial(rows, plan, numbers)
        found.append(tensor_unit(run, unit, lambda compute=compute: {"images": compute()}, shared=True)["images"])  # type: ignore[misc]
    return torch.stack(found)


def _file(name: str, seed: int) -> str:
    return f"images/{plain(name)}-{seed}.safetensors"


def _beside(recipe: QSchedRecipe, run: Run, model: str, like: Any, prompts: list[str]) -> Tensor:
    """Images of another pipeline in the same scheme, after its own plan of as many steps."""

    def opened() -> System:
        pipe = load_pipeline(model, dtype=like.dtype).to(like.device)
        fuse_adapters(pipe)
        networks, sampler = backbones_of(pipe), PipelineSampler(pipe, recipe.guidance, {}, recipe.batch)
        plan = plan_of(pipe, recipe.steps, guidance_scale=recipe.guidance)
        with torch.no_grad(), recording_parts(networks) as calls:
            sampler(plan, prompts[:1], [0], "latent")
        for part, network in networks.items():
            quantize(network, recipe.scheme, example=spread_calls(calls[part]))
        return sampler, plan

    return _of_another(run, beside(model), opened, prompts, recipe.evaluation.seeds)


def _teacher(recipe: QSchedRecipe, run: Run, like: Any, prompts: list[str]) -> Tensor | None:
    settings = recipe.evaluation
    if settings.teacher == "none":
        return None

    def opened() -> tuple[PipelineSampler, Plan]:
        pipe = load_pipeline(settings.teacher, dtype=like.dtype).to(like.device)
        plan = plan_of(pipe, settings.teacher_steps, guidance_scale=settings.teacher_guidance)
        return PipelineSampler(pipe, settings.teacher_guidance, {}, recipe.batch), plan

    # fifty guided steps cost as much as all other systems together: one seed
    return _of_another(run, f"{TEACHER}-{settings.teacher_steps}", opened, prompts, settings.seeds[:1])


def _of_another(
    run: Run, name: str, opened: Callable[[], tuple[PipelineSampler, Plan]], prompts: list[str], seeds: list[int]
) -> Tensor:
    """Images of a pipeline that is opened only where some are missing, (S, P, 3, H, W)."""
    if all(run.done(_file(name, seed).removesuffix(".safetensors")) for seed in seeds):
        return torch.stack([load_images(run, name, seed) for seed in seeds])
    return _images(run, name, *opened(), prompts, seeds)


def _evaluate(
    recipe: QSchedRecipe,
    run: Run,
    images: Mapping[str, Tensor],
    teacher: Tensor | None,
    reference: tuple[Tensor, str],
    prompts: list[str],
) -> dict[str, Any]:
    settings = recipe.evaluation
    features = [load_features(placed(spec)) for spec in settings.features]
    judge: Judge | None = None if settings.judge == "none" else load_reward(placed(settings.judge))
    pictures, described = reference
    stacks = [*images.values(), *([] if teacher is None else [teacher])]
    features, judge = shared_networks(run, features, judge, stacks, prompts)
    found = evaluate(images, pictures, prompts, features, judge, paired_to=FULL, compare=_compared(images))
    if teacher is not None:
        alone = evaluate({TEACHER: teacher}, pictures, prompts, features, judge)
        found["systems"][TEACHER] = alone["systems"][TEACHER]
    return found | {"reference_set": described, "prompts_used": prompts}


def _compared(systems: Iterable[str]) -> list[tuple[str, str]]:
    """Tuned low bits with everything else, and every other way to quantize with itself after Q-Sched."""
    pairs = [(LOW_TUNED, LOW), (LOW_TUNED, FULL), (LOW_TUNED, FULL_TUNED), (LOW_TUNED, LOW_FITTED)]
    names = list(systems)
    pairs += [(LOW_TUNED, name) for name in names if name not in SYSTEMS and not name.endswith(then_tuned(""))]
    return pairs + [(then_tuned(name), name) for name in names if name != LOW and then_tuned(name) in names]


def _reference(
    recipe: QSchedRecipe, run: Run, full: PipelineSampler, plan: Plan, prompts: list[str]
) -> tuple[Tensor, str]:
    """Real held-out pictures where we have them; else full-precision images of other seeds, and distances are drift."""
    name = recipe.evaluation.pictures
    if name != "none":
        described = "the real emoji of the held-out combinations, never trained on" if name == "emoji" else name
        return recipe.real_pictures().images, described
    seeds = [seed + 1000 for seed in recipe.evaluation.seeds]
    described = "full-precision images of other seeds, so that distances are drift from full precision, not quality"
    return _images(run, "reference", full, plan, prompts, seeds).flatten(0, 1), described


def _speed(systems: Mapping[str, System], prompt: str) -> dict[str, Any]:
    """Milliseconds per image at batch 1, both pipelines taking turns; the first of each only warms up."""
    times: dict[str, list[float]] = {FULL: [], LOW: []}
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            for name, (generate, plan) in ((FULL, systems[FULL]), (LOW, systems[LOW_TUNED])):
                start = time.perf_counter()
                generate(plan, [prompt], [turn])
                times[name] += [time.perf_counter() - start] if turn else []
    return {name: {"milliseconds": 1000 * statistics.median(t), "runs": len(t)} for name, t in times.items()}
