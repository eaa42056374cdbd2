"""The training in legs: after each the student is measured, and the alarm may stop it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from fewstep.distillation.engine import Engine
from fewstep.errors import FewstepError
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.align.measure import Check, measured
from fewstep.jobs.distill.networks import drawable, engine_of, kept_as, released, student_of
from fewstep.metrics.intervals import difference_interval
from fewstep.train.distillation import stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.memory import described, memory_of
from fewstep.train.shards import whole_state

SAVE, LOAD = kept_as("check")


def legs(context: AlignContext) -> list[int]:
    """Updates after which the student is measured."""
    total, every = context.recipe.train.steps, context.recipe.train.every
    return [*range(every, total, every), total]


def aligned(context: AlignContext) -> tuple[list[Check], list[str]]:
    """All measurements, that of the untouched student first, and the messages of the alarm.

    Several processes share what is drawn and scored, and train with gradients in common.

    Raises:
        FewstepError: a reward that is the same for all pictures.
    """
    context.run.unit("memory", partial(_memory, context))
    start = context.run.unit("check-0", lambda: measured(context, None, 0), shared=True)
    if "reward" in context.method.needs and max(start["scores"]) == min(start["scores"]):
        hint = "A reward that never changes teaches nothing: look at what it reads."
        raise FewstepError("the reward is the same for all pictures", value=start["scores"][0], hint=hint)
    checks, messages = [start], list[str]()
    for updates in legs(context):
        leg = partial(_leg, context, updates)
        found = context.run.unit(f"leg-{updates}", leg, save=SAVE, load=LOAD, together=True)
        checks.append(found["check"])
        if message := hacked(start, found["check"]):
            messages.append(message)
            context.run.say(f"[yellow]{message}[/yellow]")
            if context.recipe.alarm:
                break
    return checks, messages


def best_check(checks: list[Check]) -> int:
    """Which measurement is the best: the highest reward among those without an alarm (of votes: the last)."""
    sound = [k for k, check in enumerate(checks) if k == 0 or not hacked(checks[0], check)]
    if not checks[0]["scores"]:
        return sound[-1]
    return max(sound, key=lambda k: checks[k]["reward"])


def hacked(start: Check, now: Check) -> str:
    """A message where the reward has risen while judge or recall fell, beyond their intervals; else nothing."""
    if not now["scores"]:
        return ""
    if difference_interval(torch.tensor(now["scores"]), torch.tensor(start["scores"])).low <= 0:
        return ""
    worse = []
    if now["judge"] is not None:
        fall = difference_interval(torch.tensor(now["judged"]), torch.tensor(start["judged"]))
        if fall.high < 0:
            worse.append(f"the judge falls from {start['judge']:.4g} to {now['judge']:.4g}")
    fall = difference_interval(torch.tensor(now["covered"]), torch.tensor(start["covered"]))
    if fall.high < 0 and now["recall"] < 0.8 * start["recall"]:
        worse.append(f"recall falls from {start['recall']:.2f} to {now['recall']:.2f}")
    if not worse:
        return ""
    return (
        f"After {now['updates']} updates the reward is hacked: it rises from {start['reward']:.4g} to "
        f"{now['reward']:.4g} while {' and '.join(worse)}. Train for less, at a lower learning rate, or use joint."
    )


def network_after(context: AlignContext, updates: int) -> nn.Module | None:
    """The network after so many updates; None for the untouched one."""
    if updates == 0:
        return None
    tensors = LOAD(context.run.artifact(f"leg-{updates}"))["tensors"]
    network = student_of(context.pipe, context.method, context.recipe.train, tensors)
    like = next(context.backbones[context.backbone].parameters())
    return network.to(like.device, like.dtype).eval().requires_grad_(False)


def _engine(context: AlignContext) -> Engine:
    """The student as it began, and who takes part."""
    torch.manual_seed(context.config.seed)  # heads of an adversary and adapters begin at random
    return engine_of(
        context.pipe, context.method, context.process, context.prediction, context.encoded, context.batches(),
        context.recipe.train, teacher=context.teacher, reward=context.score if context.opened else None,
    )  # fmt: skip


def _memory(context: AlignContext) -> dict[str, float]:
    """Bytes by name: what trains, the parts of the pipeline, the teacher and the rewards; said before the work."""
    engine = _engine(context)
    parts = {name: m for name, m in context.pipe.components.items() if isinstance(m, nn.Module)}
    networks = [module for reward in context.opened for module in getattr(reward, "networks", ())]
    parts |= {f"reward {k + 1}": module for k, module in enumerate(networks)}
    if context.teacher is not None:
        network: Any = context.teacher.network
        parts["teacher"] = network.model
    try:
        sizes = memory_of(stage_of(engine, context.config, lambda folder: None), context.config, parts)
    finally:
        released(engine)
    context.run.say(described(sizes))
    return sizes


def _leg(context: AlignContext, updates: int) -> dict[str, Any]:
    """Train on from the last checkpoint to so many updates, and measure."""
    config, engine = context.config, _engine(context)
    try:
        stage, place = stage_of(engine, config, lambda folder: None), context.run.scratch("train")
        progress = fit(stage, config, place, accelerator_for(config), quiet=context.run.quiet, until=updates)
        tensors = {name: value.clone() for name, value in whole_state(engine.modules["student"]).items()}
        network = drawable(engine.modules["student"], context.method, context.process)
        check = measured(context, network, updates)
    finally:
        released(engine)
    return {"tensors": tensors, "check": {**check, "history": progress.history, "seconds": progress.seconds}}
