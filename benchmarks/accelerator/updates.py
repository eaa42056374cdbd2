"""Twenty updates of the main methods of distillation on networks of their true size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from distillation_true_size import MODELS, attempt

from accelerator import Part, Setting
from fewstep.jobs.distill.leaderboard import FIRST

UPDATES, BATCH = 20, 2


def parts(setting: Setting, methods: Sequence[str] = FIRST) -> dict[str, Part]:
    """A part for every method and network, the most used networks first."""
    names = list(methods)[: 2 if setting.toy else None]
    kinds = ("pixart",) if setting.toy else tuple(MODELS)
    updates = 1 if setting.toy else UPDATES
    return {
        f"{name}/{kind}": partial(attempt, name, kind, updates, BATCH, setting.toy, setting.kind)
        for name in names
        for kind in kinds
    }
