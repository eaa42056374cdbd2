"""What a student is measured by on held-out items; several processes share what is drawn and scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import NonFiniteError
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.context import Items, seeds_for, tensor_unit
from fewstep.jobs.sharing import Rows, SharedRows
from fewstep.metrics import load_features
from fewstep.metrics.distances import diversity, frechet, precision_recall
from fewstep.plan import Plan
from fewstep.zoo import placed

Check = dict[str, Any]
"""A measurement: `updates`; `reward` and `judge` (None without one), `recall`, `diversity`, `distance` and `real` (None
without real pictures), `rewards` by name; `scores` and `judged` of each item, `covered` of each reference; after
training its `history` and `seconds`."""


def measured(context: AlignContext, network: nn.Module | None, updates: int) -> Check:
    """Reward, judge, diversity and distances of a student on held-out items; of the untouched one without a network."""
    settings = context.recipe.evaluation
    sets = [context.items("evaluation", settings.conditions, settings.items, seed) for seed in settings.seeds]
    name = f"drawn-{updates}"
    images = torch.stack([_shared(context, name, items, _drawing(context, network, items)) for items in sets])
    pairs = zip(images, sets, strict=True)
    table = torch.stack([_scored(context, updates, some, items) for some, items in pairs]).double().mean(0)
    if not bool(table.isfinite().all()):
        raise NonFiniteError("a reward is NaN or infinite on the student's pictures", hint="Look at the reward.")
    rewards = table[:, : len(context.opened)]
    scores = (rewards @ torch.tensor(context.weights, dtype=torch.float64)).tolist() if context.opened else []
    judged = [] if context.judge is None else table[:, -1].tolist()
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
        "real": None if context.real is None else frechet(features, net(context.real)),
        "rewards": {r.name: float(column.mean()) for r, column in zip(context.opened, rewards.T, strict=True)},
        "scores": scores,
        "judged": judged,
        "covered": covered.tolist(),
    }


def drawn(context: AlignContext, network: nn.Module | None, items: Items) -> Tensor:
    """Pictures (N, 3, H, W) of a network, run as the pipeline runs it; of the pipeline's own without one."""
    with torch.no_grad():
        sampler = context.sampler(**({} if network is None else {context.backbone: network}))
        return items.draw(sampler, context.plan).cpu()


def _drawing(context: AlignContext, network: nn.Module | None, items: Items) -> Rows:
    return lambda plan, numbers: drawn(context, network, items.pick(numbers))


def _shared(context: AlignContext, name: str, items: Items, compute: Rows) -> Tensor:
    """A row of every item, made in pieces."""
    rows = SharedRows(context.run, name, items.pairs, compute, context.recipe.batch)
    return rows(context.plan, range(len(items.seeds)))


def _scored(context: AlignContext, updates: int, images: Tensor, items: Items) -> Tensor:
    """What every reward, and the judge behind them, says of each picture: (N, R)."""
    scorers = [*context.opened, *([] if context.judge is None else [context.judge])]
    if not scorers:
        return torch.zeros(len(images), 0)
    prompts = [""] * len(images) if items.conditions is None else [str(c) for c in items.conditions]

    def compute(plan: Plan, numbers: Sequence[int]) -> Tensor:
        some, texts = images[list(numbers)], [prompts[i] for i in numbers]
        return torch.stack([scorer.score(some, texts).detach().float().cpu() for scorer in scorers], 1)

    return _shared(context, f"scored-{updates}", items, compute)


def _reference(context: AlignContext) -> Tensor:
    """Pictures of the untouched student with other seeds."""
    settings = context.recipe.evaluation
    conditions = context.conditions(settings.conditions, settings.reference, held_out=True)
    items = Items(conditions, seeds_for("reference", 0, settings.reference))

    def compute() -> dict[str, Tensor]:
        images = _shared(context, "reference", items, _drawing(context, None, items))
        return {"images": (images * 255).round().to(torch.uint8)}

    return tensor_unit(context.run, "reference", compute, shared=True)["images"]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
