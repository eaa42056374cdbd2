"""What a step of a method costs, counted where it happens: samples that pass through a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.distillation.engine import Engine
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.networks import engine_of

COST = {"forward": 1, "backward": 2}
"""Of a pass of one sample, in units of one forward."""


@contextmanager
def counting(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Counter[str]]]:
    """Count the samples that pass each module `forward`, and `backward` where the output takes a gradient.

    A call that is left early, because an adversary looks at features half-way, counts whole.
    """
    seen = {name: Counter[str]() for name in modules}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            learns = any(v.requires_grad for v in (*given, *module.parameters())) and torch.is_grad_enabled()
            seen[name]["forward"] += len(given[0])
            seen[name]["backward"] += len(given[0]) if learns else 0

        return note

    handles = [m.register_forward_hook(hook(name), with_kwargs=True, always_call=True) for name, m in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def passes_of(engine: Engine, teacher: nn.Module, steps: int) -> float:
    """Samples forward per update of the student, every network and follower included; trains nothing.

    steps: updates that are counted, spread over the whole training.
    """
    # an adversary on features of others is no network of its own
    networks = {n: m for n, m in {**engine.modules, **engine.slow}.items() if n != "adversary"}
    with counting({"teacher": teacher, **networks}) as seen:
        for step in range(steps):
            for _, compute in engine.turns(step, steps, torch.Generator().manual_seed(step)):
                compute()
    return sum(COST[way] * count for passed in seen.values() for way, count in passed.items()) / steps


def passes_per_step(context: DistillContext, steps: int = 2) -> float:
    """The same of a job."""
    engine = engine_of(
        context.pipe, context.method, context.process, context.prediction, context.encoded, context.batches(),
        context.recipe.train,
    )  # fmt: skip
    return passes_of(engine, context.backbones[context.backbone], steps)
