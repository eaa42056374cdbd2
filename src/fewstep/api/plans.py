"""`fewstep.plan_of`, `search` and `tune`: plans without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.api.models import Student
from fewstep.api.open_pipelines import job
from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, nearest
from fewstep.executor import sample
from fewstep.jobs.context import JobContext
from fewstep.jobs.q_sched import judges
from fewstep.jobs.q_sched.job import tuned_plan
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.jobs.search.context import SearchContext
from fewstep.jobs.search.job import search_schedule
from fewstep.pipelines import plan_of as read_plan
from fewstep.pipelines import process_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.rewards import Reward, as_reward, load_reward
from fewstep.schedules import ModelInfo, SearchTask, TeacherMatch, Trajectory, search_method
from fewstep.solvers import SOLVERS, Grid, grids


def plan_of(target: Any, steps: int = 4, *, solver: str = "", grid: Grid | None = None, **call: Any) -> Plan:
    """The plan that a pipeline follows today, or that a solver makes for its network: same weights, other steps.

        plan = fs.plan_of(pipe, 6)                                  # read out of its scheduler
        plan = fs.plan_of(pipe, 6, solver="dpm_solver_pp_2m")       # another sampler for the same network

    Args:
        target: a pipeline, a `Denoiser`, or a `Student` (whose own plan it is).
        steps: inference steps as users ask for them; times of the grid where a solver is given.
        solver: one of `fewstep.solvers.SOLVERS`; a `Denoiser` has UniPC unless given.
        grid: its times; equal steps unless given.
        call: further arguments of the pipeline's call that decide its times, such as `guidance_scale` or `height`.

    Raises:
        FewstepError: no such solver, or a scheduler that cannot be read.
    """
    if isinstance(target, Student) and not solver:
        return target.plan
    if isinstance(target, Student) and target.denoiser is None:
        hint = "Make a Denoiser(network, process, prediction) of it."
        raise FewstepError("a student that was read from a folder has its own plan only", value=solver, hint=hint)
    if not isinstance(target, Denoiser | Student) and not solver:
        return read_plan(target, steps, **call)
    name = solver or "unipc"
    if name not in SOLVERS:
        raise FewstepError("unknown solver", value=name, hint=nearest(name, SOLVERS))
    denoiser = target.denoiser if isinstance(target, Student) else target
    if isinstance(denoiser, Denoiser):
        process, prediction = denoiser.process, denoiser.prediction
    else:
        process, prediction = process_of(target, **call)
    return SOLVERS[name](process, prediction, grid if grid is not None else grids.uniform(process, steps))


def search(
    target: Any,
    steps: int = 6,
    *,
    method: str = "joint",
    budget: int = 200,
    items: int = 32,
    conditions: str | Sequence[Any] | Mapping[str, Tensor] = "auto",
    shape: Sequence[int] = (),
    guidance: float = 1.0,
    solver: str = "unipc",
    teacher_steps: int = 60,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Plan:
    """A better schedule for the same network and number of evaluations, without training; `fewstep search`.

    The network's own many-step trajectory is the target: no data, no labels, no rewards.

    Args:
        target: a pipeline, or a `Denoiser`.
        steps: network evaluations that the plan may use.
        method: `joint`, `s3`, `ld3`, `amed`, `gits`, `autodiffusion` or `random`.
        budget: plans to evaluate on all items; a gradient counts as three.
        items: pairs of condition and seed that every plan is tried on.
        conditions: prompts or class labels, `auto` fits the pipeline; of a `Denoiser`, tensors (items, ...) by name.
        shape: of one sample of a `Denoiser`.
        guidance: `guidance_scale` of the pipeline.
        solver: what runs on the searched times where the method does not choose it itself.
        teacher_steps: of the trajectory.
        seed: of the items and of the search.
        settings: further settings of the recipe by dotted name, such as `{"search.most_skipped": 0.2}`.
        out: a run directory to keep; a call that was killed goes on there.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        The best plan, of this network; `origin` says how it was found.

    Raises:
        FewstepError: a method or budget that does not go together.
    """
    if isinstance(target, Denoiser):
        named = conditions if isinstance(conditions, Mapping) else {}
        return _search_denoiser(target, steps, method, budget, items, named, shape, solver, teacher_steps, seed)
    given = {
        "steps": steps, "guidance": guidance, "call": call, "search.method": method, "search.budget": budget,
        "search.items": items, "search.seed": seed, "search.solver": solver, "teacher.steps": teacher_steps,
        "search.conditions": conditions if isinstance(conditions, str) else list(conditions),
    }  # fmt: skip
    with job("schedule", SearchContext.open, target, given, settings, out=out, progress=progress) as context:
        return search_schedule(context)[1]


def _search_denoiser(
    denoiser: Denoiser,
    steps: int,
    method: str,
    budget: int,
    items: int,
    conditions: Mapping[str, Tensor],
    shape: Sequence[int],
    solver: str,
    teacher_steps: int,
    seed: int,
) -> Plan:
    if not shape:
        raise FewstepError("a denoiser does not know its samples", hint="Give shape=, that of one sample.")
    wrong = {name: len(value) for name, value in conditions.items() if len(value) != items}
    if wrong:
        raise FewstepError(f"{items} items need as many conditions", value=wrong, hint="Give items= as many as rows.")
    seeds = range(2_000_003 * (seed + 1), 2_000_003 * (seed + 1) + items)
    teacher = plan_of(denoiser, teacher_steps, solver=solver)

    def draw(plan: Plan, numbers: Sequence[int]) -> Tensor:
        some = {name: value[torch.as_tensor(list(numbers))] for name, value in conditions.items()}
        network = lambda x, time: denoiser.network(x, time, **some)  # noqa: E731
        return sample(plan, network, seeds=[seeds[i] for i in numbers], shape=shape)

    named = lambda x, time: denoiser.network(x, time, **conditions)  # noqa: E731
    trajectory = Trajectory.follow(teacher, named, seeds=seeds, shape=shape)
    task = SearchTask(
        ModelInfo(denoiser.process, denoiser.prediction), steps, TeacherMatch(draw, trajectory.final), trajectory,
        budget, seed, SOLVERS[solver],
    )  # fmt: skip
    return search_method(method)(task).plan


Rewards = Sequence[str | Reward | Callable[[Tensor, Sequence[str]], Tensor]]
"""Alignment and quality, each by name, as a `Reward`, or as a function (images, prompts) -> (B,)."""


def tune(
    pipe: Pipeline,
    *,
    prompts: str | Sequence[str] = "auto",
    objective: str = "auto",
    rewards: Rewards = ("auto", "auto"),
    teacher: str = "auto",
    plan: Plan | None = None,
    steps: int = 4,
    guidance: float = 1.0,
    family: str = "ramp",
    searcher: str = "coarse-to-fine",
    budget: float = 100,
    count: int = 16,
    blocks: Sequence[int] = (1, 2),
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Plan:
    """Q-Sched: two scalars per step that adapt the sampler to a low-bit network (arXiv 2509.01624).

        low = fs.quantize(pipe, "w4a8")
        tuned = fs.tune(low, prompts=prompts)
        images = fs.generate(low, held_out, plan=tuned)

    By default the pictures are to lie near those of a many-step teacher where there is one, as in the command: on a
    shipped student in w4a4 that ranked candidates as held-out quality does (correlation .99), the published objective
    JAQ did not (.35; results/objectives.json). Without a teacher, with rewards that are named, or with fewer than eight
    pictures to compare it is JAQ.

    Args:
        pipe: a text-to-image pipeline, in low bits or not; it is not changed.
        prompts: to search on, or a prompt set by name; keep others to look at the result.
        objective: what is maximised: `jaq` (the two rewards), or nearness of the calibration pictures as a set to those
            of the `teacher` or to `real` ones (`settings={"search.pictures": "folder"}`).
        rewards: alignment and quality of JAQ; one alone, or a function of your own, will do. `auto`: the emoji rewards
            for a shipped model, CLIP and PickScore for any other. Whoever searches on a reward must judge by another.
        teacher: shipped name, folder or hub id of a multi-step pipeline; `none` for none, which is what `auto` means
            for a model that does not ship with the package.
        plan: what is scaled; what the pipeline follows at `steps` unless given.
        steps: of the pipeline's own plan.
        guidance: `guidance_scale` of the pipeline.
        family: how many numbers describe the scalars: `ramp-to-one`, `ramp`, `free` or `per-channel`.
        searcher: `coarse-to-fine`, `grid`, `cma-es`, `tpe` or `gradient`.
        budget: candidates scored on all prompts and seeds.
        count: how many of the prompts.
        blocks: of noise, by number: each prompt is drawn once from each of them, and no two prompts share noise. They
            are not the `seeds` of `generate`, which are the same for every prompt.
        seed: of the searcher.
        settings: further settings of the recipe by dotted name, such as `{"search.low": 0.7}`.
        out: a run directory to keep; a call that was killed goes on there.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        The scaled plan, of this network; `origin["search"]` says what was gained.

    Raises:
        FewstepError: a budget that allows no candidate, rewards or a teacher that cannot be opened, or rewards of one's
            own beside an objective that has none.
        IdentityError: the plan belongs to another network.
    """
    given = {
        "steps": steps if plan is None else plan.steps, "guidance": guidance, "call": call,
        "search.family": family, "search.searcher": searcher, "search.budget": budget, "search.count": count,
        "search.seeds": list(blocks), "search.seed": seed, "evaluation.judge": "none", "evaluation.teacher": teacher,
        "search.objective": objective, "scheme": "none",  # the bits that it has
        "search.prompts": prompts if isinstance(prompts, str) else list(prompts), **_named(rewards),
    }  # fmt: skip
    with job("q-sched", JobContext.open, pipe, given, settings, out=out, progress=progress) as context:
        if plan is not None:
            plan.check(context.identity)
        jaq = context.recipe.search.objective == "jaq"
        if not jaq and not all(isinstance(reward, str) for reward in rewards):
            hint = "Leave the rewards or the objective out."
            raise FewstepError("only the objective jaq has rewards", value=objective, hint=hint)
        found = _opened(rewards, context.recipe) if jaq else None
        return tuned_plan(context, context.sampler(), context.plan if plan is None else plan, found)


def _named(rewards: Rewards) -> dict[str, str]:
    """The two rewards as a recipe names them."""
    if not 1 <= len(rewards) <= 2 or isinstance(rewards, str):
        hint = "Give rewards=[alignment, quality], or one of them."
        raise FewstepError("an objective has one or two rewards", value=rewards, hint=hint)
    names = [reward if isinstance(reward, str) else f"given:{as_reward(reward).name}" for reward in rewards]
    return dict(zip(("rewards.alignment", "rewards.quality"), [*names, "none"], strict=False))


def _opened(rewards: Rewards, recipe: QSchedRecipe) -> tuple[Reward, Reward]:
    """The two rewards; those that the recipe names are opened."""
    if all(isinstance(reward, str) for reward in rewards):
        return judges.rewards(recipe)
    specs = {"rewards.alignment": recipe.rewards.alignment, "rewards.quality": recipe.rewards.quality}
    objects = [*rewards, "none"]
    first, second = (
        judges.opened(name, spec, load_reward) if isinstance(given, str) else as_reward(given)
        for (name, spec), given in zip(specs.items(), objects, strict=False)
    )
    return first, second
