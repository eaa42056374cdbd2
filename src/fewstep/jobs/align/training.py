"""The training in legs: after each the student is measured, and the alarm may stop it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distillation.engine import Engine
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.context import Items, seeds_for, tensor_unit
from fewstep.jobs.distill.networks import drawable, engine_of, kept_as, released, student_of
from fewstep.metrics import load_features
from fewstep.metrics.distances import diversity, frechet, precision_recall
from fewstep.metrics.intervals import difference_interval
from fewstep.train.distillation import stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.shards import whole_state
from fewstep.zoo import placed

Check = dict[str, Any]
"""A measurement: `updates`; `reward`, `judge` (None without one), `recall`, `diversity`, `distance`; `scores` and
`judged` of each item, `covered` of each reference; after training its `history` and `seconds`."""
SAVE, LOAD = kept_as("check")


def legs(context: AlignContext) -> list[int]:
    """Updates after which the student is measured."""
    total, every = context.recipe.train.steps, context.recipe.train.every
    return [*range(every, total, every), total]


def aligned(context: AlignContext) -> tuple[list[Check], list[str]]:
    """All measurements, that of the untouched student first, and the messages of the alarm.

    Raises:
        FewstepError: a reward that is the same for all pictures.
    """
    start = context.run.unit("check-0", lambda: measured(context, None, 0))
    if "reward" in context.method.needs and max(start["scores"]) == min(start["scores"]):
        hint = "A reward that never changes teaches nothing: look at what it reads."
        raise FewstepError("the reward is the same for all pictures", value=start["scores"][0], hint=hint)
    checks, messages = [start], list[str]()
    engine: list[Engine] = []
    try:
        for updates in legs(context):
            found = context.run.unit(
                f"leg-{updates}", partial(_leg, context, engine, updates), save=SAVE, load=LOAD, together=True
            )
            checks.append(found["check"])
            if message := hacked(start, found["check"]):
                messages.append(message)
                context.run.say(f"[yellow]{message}[/yellow]")
                if context.recipe.alarm:
                    break
    finally:
        for one in engine:
            released(one)
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


def measured(context: AlignContext, network: nn.Module | None, updates: int) -> Check:
    """Reward, judge, diversity and distance of a student on held-out items; of the untouched one without a network."""
    settings = context.recipe.evaluation
    sets = [context.items("evaluation", settings.conditions, settings.items, seed) for seed in settings.seeds]
    images = torch.stack([drawn(context, network, items) for items in sets])
    prompts = [""] * settings.items if sets[0].conditions is None else [str(c) for c in sets[0].conditions]

    def by(scorers: Any) -> list[float]:
        """The sum of the scores of each item, a mean over seeds."""
        each = [torch.stack([w * r.score(some, prompts).detach().cpu() for w, r in scorers]).sum(0) for some in images]
        found = torch.stack(each).double().mean(0)
        if not bool(found.isfinite().all()):
            raise NonFiniteError("a reward is NaN or infinite on the student's pictures", hint="Look at the reward.")
        return found.tolist()

    weights = context.recipe.weights or [1.0] * len(context.opened)
    scores = by(list(zip(weights, context.opened, strict=True))) if context.opened else []
    judged = [] if context.judge is None else by([(1.0, context.judge)])
    net = load_features(placed(settings.features[0]))
    reference, features = net(_reference(context)), net(images.flatten(0, 1))
    covered = precision_recall(features, reference)[1].double()
    return {
        "updates": updates,
        "reward": _mean(scores),
        "judge": _mean(judged),
        "recall": float(covered.mean()),
        "diversity": float(diversity(features.unflatten(0, images.shape[:2])).mean()) if len(images) > 1 else None,
        "distance": frechet(features, reference),
        "scores": scores,
        "judged": judged,
        "covered": covered.tolist(),
    }


def drawn(context: AlignContext, network: nn.Module | None, items: Items) -> Tensor:
    """Pictures (N, 3, H, W) of a network, run as the pipeline runs it; of the pipeline's own without one."""
    with torch.no_grad():
        return items.draw(
            context.sampler(**({} if network is None else {context.backbone: network})), context.plan
        ).cpu()


def network_after(context: AlignContext, updates: int) -> nn.Module | None:
    """The network after so many updates; None for the untouched one."""
    if updates == 0:
        return None
    tensors = LOAD(context.run.artifact(f"leg-{updates}"))["tensors"]
    network = student_of(context.pipe, context.method, context.recipe.train, tensors)
    like = next(context.backbones[context.backbone].parameters())
    return network.to(like.device, like.dtype).eval().requires_grad_(False)


def _reference(context: AlignContext) -> Tensor:
    """Pictures of the untouched student with other seeds."""
    settings = context.recipe.evaluation
    conditions = context.conditions(settings.conditions, settings.reference, held_out=True)
    items = Items(conditions, seeds_for("reference", 0, settings.reference))

    def compute() -> dict[str, Tensor]:
        return {"images": (drawn(context, None, items) * 255).round().to(torch.uint8)}

    return tensor_unit(context.run, "reference", compute)["images"]


def _leg(context: AlignContext, made: list[Engine], updates: int) -> dict[str, Any]:
    """Train on from the last checkpoint to so many updates, and measure."""
    config = context.config
    if not made:
        torch.manual_seed(config.seed)  # adapters begin at random
        made.append(
            engine_of(
                context.pipe, context.method, context.process, context.prediction, context.encoded, context.batches(),
                context.recipe.train, teacher=context.teacher, reward=context.score if context.opened else None,
            )
        )  # fmt: skip
    (engine,) = made
    stage = stage_of(engine, config, lambda folder: None)
    leg = config.model_copy(update={"steps": updates})
    progress = fit(stage, leg, context.run.scratch("train"), accelerator_for(leg), quiet=context.run.quiet)
    tensors = {name: value.clone() for name, value in whole_state(engine.modules["student"]).items()}
    check = measured(context, drawable(engine.modules["student"], context.method, context.process), updates)
    return {"tensors": tensors, "check": {**check, "history": progress.history, "seconds": progress.seconds}}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
