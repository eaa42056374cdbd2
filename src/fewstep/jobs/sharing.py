"""What jobs draw and score, in pieces of a fixed number of items: the same numbers in one process and in several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.images import as_float
from fewstep.metrics import FeatureNet
from fewstep.metrics.evaluate import Judge
from fewstep.metrics.features import CHUNK
from fewstep.plan import Plan
from fewstep.rewards import RewardFunction
from fewstep.runs import Run

Rows = Callable[[Plan, Sequence[int]], Tensor]
"""(plan, numbers of n items) -> one row of each, (n, ...): pictures, features or scores."""


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Rows of items, `size` items at a time; several processes share the pieces (`Run.each`).

    Args:
        run: where pieces lie while it lasts.
        name: of what draws and scores: pieces of one name, plan and items are the same.
        items: what every number stands for, to tell pieces apart.
        compute: the rows of some items. It is asked directly where a gradient is wanted.
        size: items of a piece.
    """

    run: Run
    name: str
    items: Sequence[Any]
    compute: Rows
    size: int

    def __call__(self, plan: Plan, numbers: Sequence[int]) -> Tensor:
        """The rows of these items."""
        if torch.is_grad_enabled() and plan.learned:
            return self.compute(plan, numbers)
        return torch.cat(self.run.each(self.name, self._pieces(plan, numbers)))

    def ahead(self, asked: Iterable[tuple[Plan, Sequence[int]]]) -> None:
        """Let several processes make what will be asked for, candidates of one round side by side."""
        work: dict[str, Callable[[], Tensor]] = {}
        for plan, numbers in asked:
            work |= self._pieces(plan, numbers)
        self.run.ahead(self.name, work)

    def _pieces(self, plan: Plan, numbers: Sequence[int]) -> Mapping[str, Callable[[], Tensor]]:
        document, found = json.dumps(plan.to_dict(), sort_keys=True), {}
        for first in range(0, len(numbers), self.size):
            some = numbers[first : first + self.size]
            key = digest(document, *(repr(self.items[i]) for i in some))
            found[key] = partial(_quietly, self.compute, plan, some)
        return found


def shared_networks(
    run: Run,
    features: Sequence[FeatureNet],
    judge: Judge | None,
    systems: Iterable[Tensor],
    prompts: Sequence[str],
) -> tuple[list[FeatureNet], Judge | None]:
    """Feature networks and judge for `evaluate`; several processes share their batches, all of which begin here.

    Args:
        run: of the job.
        features: networks.
        judge: its scores are shared too.
        systems: images (S, P, 3, H, W) of each system that will be evaluated.
        prompts: of the images.
    """
    work: dict[str, Callable[[], Tensor]] = {}
    for images in systems:
        for part in images.flatten(0, 1).split(CHUNK):
            work |= dict(_features(network, as_float(part)) for network in features)
        for seed in images if judge is not None else ():
            for first in range(0, len(prompts), CHUNK):
                some = slice(first, first + CHUNK)
                work |= [_scores(judge, as_float(seed[some]), prompts[some])]
    run.ahead("networks", work)

    def network(source: FeatureNet) -> FeatureNet:
        return FeatureNet(source.name, lambda images: run.each("networks", dict([_features(source, images)]))[0])

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return run.each("networks", dict([_scores(judge, images, prompts)]))[0]

    shared = None if judge is None else RewardFunction(judge.name, score)
    return [network(source) for source in features], shared


Piece = tuple[str, Callable[[], Tensor]]


def _features(network: FeatureNet, images: Tensor) -> Piece:
    return digest(network.name, images), partial(_quietly, network.network, images)


def _scores(judge: Judge | None, images: Tensor, prompts: Sequence[str]) -> Piece:
    if judge is None:
        raise ValueError
    return digest("judge", judge.name, images, *prompts), partial(_quietly, judge.score, images, prompts)


def _quietly(compute: Callable[..., Tensor], *given: Any) -> Tensor:
    with torch.no_grad():
        return compute(*given).cpu()


def digest(*parts: str | Tensor) -> str:
    """What tells one piece from another."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.contiguous().cpu().numpy().tobytes())
        found.update(b"\0")
    return found.hexdigest()[:32]
