"""`fewstep.distill`, few-step students of pipelines and torch networks; `fewstep.align`, their tuning by rewards."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fewstep.api.batches import Batches, Rows, batches_of, with_trajectories
from fewstep.api.models import Student, identity, network_device
from fewstep.api.open_pipelines import frozen, job
from fewstep.denoiser import Backbone, Denoiser
from fewstep.distillation.core import Batch
from fewstep.distillation.discriminator import as_tokens
from fewstep.distillation.engine import assemble
from fewstep.distillation.method import Method, find_preset, fitting_options, options_of
from fewstep.distillation.method import method as method_of
from fewstep.distillation.taps import watch
from fewstep.errors import FewstepError, nearest
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.align.job import pipeline_of
from fewstep.jobs.align.training import aligned, best_check
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.networks import middle_of
from fewstep.jobs.distill.training import student_pipeline, train
from fewstep.pipelines.protocol import Pipeline
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.rewards import as_reward, load_reward
from fewstep.runs import Run
from fewstep.train.distillation import check_length, defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig
from fewstep.zoo import placed


def distill(
    target: Any,
    method: str | Callable[..., Method] = "dmd2",
    *,
    steps: int = 4,
    guidance: float = 1.0,
    data: Any = "teacher",
    process: Process | None = None,
    prediction: Prediction | str | None = None,
    student: nn.Module | None = None,
    shape: Sequence[int] = (),
    conditions: Any = "auto",
    negative: Rows | None = None,
    train_steps: int = 400,
    batch: int = 32,
    learning_rate: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Any:
    """Train a student that draws in few steps what its teacher draws in many; the command is `fewstep distill`.

        student = fs.distill(pipe, "dmd2", steps=4, train_steps=2000)
        student = fs.distill(network, "lcm", steps=4, data=pictures, process=RectifiedFlow(), prediction="velocity")

    Args:
        target: the teacher, which is not changed: a pipeline; a `Denoiser`; or a torch network (x (B, ...), network
            time (B,), **condition) -> raw output, with `process` and `prediction`.
        method: a name (`fewstep distill` lists them), or a function (process, *, steps) -> Method.
        steps: network evaluations of the student.
        guidance: of the teacher, trained into the student, which then runs without.
        data: of a pipeline `teacher` (its own samples), `emoji`, `mnist`, a folder or an npz; of a network a tensor
            (N, ...), pairs of it and named conditions, or any iterable of batches. `teacher` is nothing: methods that
            need trajectories draw them.
        process, prediction: of a torch network.
        student: another module for the student, such as a smaller one, or one that takes `target_time`.
        shape: of one sample of a torch network, where there are no data.
        conditions: prompts or labels of the training; of a network named tensors with one row per sample.
        negative: of a network, the conditions of none, tensors with one row; guidance needs them.
        train_steps: updates of the student.
        batch: samples per update.
        learning_rate: the method's own unless given.
        seed: of weights, data and noise.
        options: of the method, such as `{"ratio": 2}`.
        settings: of the loop: for a pipeline of its recipe by dotted name (`{"train.lora": 16}`), for a network of
            `StageConfig` (`{"ema": 0.9}`).
        out: a run directory to keep; a training that was killed goes on there.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        A pipeline that follows the student's plan; a `Student` of a torch network.

    Raises:
        FewstepError: an unknown method or option, or data that the method lacks.
        NonFiniteError: a loss became NaN or infinite.
    """
    if isinstance(target, nn.Module | Denoiser):
        teacher = _teacher(target, process, prediction)
        named = None if isinstance(conditions, str) else conditions
        source = None if isinstance(data, str) and data == "teacher" else data
        batches = batches_of(
            source, size=batch, shape=shape, conditions=named, negative=negative, device=network_device(teacher.network)
        )
        made = _method(method, teacher, steps, guidance, dict(options or {}), batches, train_steps)
        loop = {"learning_rate": learning_rate} if learning_rate else {}
        config = _config(
            made, teacher, {"steps": train_steps, "batch": batch, "seed": seed, **loop, **(settings or {})}
        )
        return _train(teacher, made, config, batches, student, out, progress)
    if callable(method) or student is not None or process is not None or prediction is not None:
        hint = "Give the pipeline's network with its process and prediction (fewstep.pipelines.process_of)."
        raise FewstepError("a pipeline is distilled by a method's name into a network of its own kind", hint=hint)
    rate = {"train.learning_rate": learning_rate} if learning_rate else {}
    given = {
        "method": method, "steps": steps, "guidance": guidance, "call": call, "options": dict(options or {}),
        "data.source": data, "data.conditions": conditions if isinstance(conditions, str) else list(conditions),
        "train.steps": train_steps, "train.batch": batch, "train.seed": seed, **rate,
    }  # fmt: skip
    with job("distill", DistillContext.open, target, given, settings, out=out, progress=progress) as context:
        context.check()
        with torch.random.fork_rng():
            trained = train(context)
        return student_pipeline(context, trained, context.student_plan)


def align(
    pipe: Pipeline,
    rewards: Any = (),
    *,
    method: str = "pso",
    prompts: Any = "auto",
    pairs: str | Path = "",
    weights: Sequence[float] = (),
    teacher: str = "",
    judge: str = "auto",
    train_steps: int = 100,
    batch: int = 8,
    learning_rate: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Any:
    """Tune a few-step pipeline towards rewards or votes; the command is `fewstep align`.

        tuned = fs.align(pipe, lambda images, prompts: -images.mean((1, 2, 3)), prompts=["cat face", "dog face"])

    Args:
        pipe: the student, which is not changed.
        rewards: one or several: names such as `colourfulness` or `clip:FOLDER`, `Reward`s, or functions (images
            (B, 3, H, W) in [0, 1], B prompts) -> (B,). None for the methods that learn from votes.
        method: pso, grpo, refl, ...; see `fewstep.alignment.presets`.
        prompts: what is trained on: a set by name, prompts, or labels.
        pairs: a file of votes.
        weights: of the rewards; 1 each unless given.
        teacher: the many-step pipeline that joint, re_dmd and tilted_dmd distil from.
        judge: a reward that judges alone, `auto` or `none`.
        train_steps: updates of the student.
        batch: prompts per update.
        learning_rate: the method's own unless given.
        seed: of weights and noise.
        options: of the method, such as `{"beta": 20}`.
        settings: further ones of the recipe by dotted name, such as `{"train.lora": 4}`.
        out: a run directory to keep; a training that was killed goes on there.
        progress: show progress.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        A pipeline: the best student, which follows the plan of the one that it began as.

    Raises:
        FewstepError: an unknown method or option, no prompts, votes that are missing, or a reward that says nothing.
        NonFiniteError: a reward or a loss became NaN or infinite.
    """
    if isinstance(pipe, nn.Module | Denoiser | Student):
        hint = "For a torch network use fewstep.alignment.presets with fewstep.distillation.engine.assemble."
        raise FewstepError("fs.align tunes pipelines", value=type(pipe).__name__, hint=hint)
    several = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    opened = tuple(load_reward(placed(one)) if isinstance(one, str) else as_reward(one) for one in several)
    names = [one if isinstance(one, str) else f"given:{as_reward(one).name}" for one in several]
    rate = {"train.learning_rate": learning_rate} if learning_rate else {}
    given = {
        "method": method, "reward": names, "weights": list(weights), "pairs": str(pairs), "teacher": teacher,
        "train_prompts": prompts if isinstance(prompts, str) else list(prompts), "options": dict(options or {}),
        "evaluation.judge": judge, "train.steps": train_steps, "train.batch": batch, "train.seed": seed, "call": call,
        **rate,
    }  # fmt: skip
    with job(
        "align", partial(AlignContext.open, rewards=opened), pipe, given, settings, out=out, progress=progress
    ) as c:
        c.check()
        with torch.random.fork_rng():
            checks, _ = aligned(c)
        return pipeline_of(c, checks[best_check(checks)]["updates"])


# --- a torch network ------------------------------------------------------------------------------------------------


def _teacher(target: nn.Module | Denoiser, process: Process | None, prediction: Prediction | str | None) -> Denoiser:
    if isinstance(target, Denoiser):
        if not isinstance(target.network, nn.Module | Backbone):
            hint = "Make it torch.nn.Module: student and critic begin as copies of it."
            raise FewstepError("the teacher's network has no weights", value=type(target.network).__name__, hint=hint)
        return target
    if process is None or prediction is None:
        hint = 'For instance process=fewstep.process.RectifiedFlow(), prediction="velocity".'
        missing = "process" if process is None else "prediction"
        raise FewstepError(f"a torch network needs its {missing}", value=type(target).__name__, hint=hint)
    known = prediction if isinstance(prediction, Prediction) else Prediction(prediction)
    return Denoiser(_wrapped(target), process, known)


def _wrapped(module: nn.Module) -> Callable[..., Tensor]:
    """A module of diffusers as (x, time, **condition) -> raw output; any other is that already."""
    return Backbone(module) if type(module).__module__.startswith("diffusers.") else module


def _module(teacher: Denoiser) -> nn.Module:
    network: Any = teacher.network
    return network.model if isinstance(network, Backbone) else network


def _method(
    method: str | Callable[..., Method],
    teacher: Denoiser,
    steps: int,
    guidance: float,
    options: dict[str, Any],
    batches: Batches,
    updates: int,
) -> Method:
    """The method for this teacher, told where an adversary looks at it."""
    if not isinstance(method, str):
        return method(teacher.process, steps=steps, **options)
    known = options_of(method)
    if guidance != 1 and not find_preset(method).guidance:
        raise FewstepError(f"{method} takes no guidance from its teacher", value=guidance, hint="Set guidance=1.")
    shared = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if name in known}
    options = fitting_options(method, teacher.process, updates, **{**shared, **options})
    made = method_of(method, teacher.process, **options)
    if not find_preset(method).reads_layers or made.adversary is None:
        return made
    modules = options.get("modules") or [_middle(_module(teacher))]
    channels = options.get("channels") or _channels(teacher, modules, batches(torch.Generator().manual_seed(0)))
    return method_of(method, teacher.process, **{**options, "modules": modules, "channels": channels})


def _middle(network: nn.Module) -> str:
    """The middle block of the network, or the middle of its layers where it has no list of blocks."""
    try:
        return middle_of(network)
    except FewstepError:
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if not layers:
            raise
        return layers[len(layers) // 2]


@torch.no_grad()
def _channels(teacher: Denoiser, modules: Sequence[str], batch: Batch) -> dict[str, int]:
    """Channels of what these modules put out, by one call on noise."""
    x = torch.zeros(batch.size, *batch.shape, device=network_device(teacher.network))
    time = torch.full((batch.size,), 0.5 * teacher.process.noisiest, dtype=torch.float64)
    with watch(teacher, modules) as seen:
        teacher.raw(x, time, batch.condition)
    return {name: as_tokens(feature).shape[2] for name, feature in seen.items()}


def _config(method: Method, teacher: Denoiser, given: Mapping[str, Any]) -> StageConfig:
    """The settings of the loop: the method's own, changed by what was given."""
    device = "cuda" if network_device(teacher.network).type == "cuda" else "cpu"
    try:
        config = StageConfig(**{**defaults(method.settings), "device": device, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        hint = nearest(name, StageConfig.model_fields)
        raise FewstepError(f"setting {name}: {first['msg'].lower()}", value=first["input"], hint=hint) from error
    check_length(config, method)
    return config


def _train(
    teacher: Denoiser,
    method: Method,
    config: StageConfig,
    batches: Batches,
    student: nn.Module | None,
    out: str | Path | None,
    progress: bool,
) -> Student:
    """Train with the loop of all students; the averaged weights are the result."""
    base, process = _module(teacher), teacher.process
    if "store" in method.needs:
        batches = with_trajectories(
            batches, teacher, count=512, states=16, between=4, seed=3_000_003 + config.seed, device=network_device(base)
        )
    if student is None and method.two_times and takes_target_time(base):
        student = copy.deepcopy(base)
    wrap = _wrapped if isinstance(teacher.network, Backbone) else lambda module: module
    with frozen(base), torch.random.fork_rng():
        torch.manual_seed(config.seed)  # heads of an adversary begin at random
        start = copy.deepcopy(base).requires_grad_(True)
        shape = batches(torch.Generator().manual_seed(0)).shape
        if student is not None:
            student = copy.deepcopy(student).requires_grad_(True)
        engine = assemble(method, teacher, start, wrap, batches, shape, student=student)
        stage = stage_of(engine, config, lambda folder: None, frozen={"teacher": base})
        about = {"method": method.written(), **config.model_dump(mode="json"), "network": identity(base).model}
        with ExitStack() as stack:
            run = None if out is None else stack.enter_context(Run(out, about, quiet=not progress))
            place = None if run is None else run.scratch("train")
            found = fit(stage, config, place, accelerator_for(config), quiet=not progress)
    network = engine.modules["student"].eval().requires_grad_(False)
    plan = method.steps.plan(process, teacher.prediction).replace(identity=identity(network))
    chain = zip(method.steps.times, method.steps.jumps, strict=True)
    jumps = {float(process.network_time(t)): float(process.network_time(s)) for t, s in chain}
    return Student(
        network, plan, shape, jumps if method.two_times else {}, engine.networks.student, tuple(found.history)
    )


def takes_target_time(network: nn.Module) -> bool:
    """Whether a network can be told where its jump ends."""
    return "target_time" in inspect.signature(network.forward).parameters
