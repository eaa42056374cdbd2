"""The networks that score pictures, opened before anything else: they may need a download, or may not be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fewstep.errors import FewstepError
from fewstep.jobs.q_sched.recipe import QSchedRecipe
from fewstep.metrics import load_features
from fewstep.pipelines import load_pipeline
from fewstep.rewards import Reward, load_reward
from fewstep.zoo import placed

T = TypeVar("T")

WITHOUT = {
    "rewards.alignment": "rewards.alignment=none",
    "rewards.quality": "rewards.quality=sharpness",
    "evaluation.judge": "evaluation.judge=none",
    "evaluation.features": "evaluation.features=[random,pixels]",
    "evaluation.teacher": "evaluation.teacher=none",
    "evaluation.beside": "evaluation.beside=[]",
}
"""What each setting may be where nothing can be downloaded."""


def rewards(recipe: QSchedRecipe) -> tuple[Reward, Reward]:
    """The two terms of the objective.

    Raises:
        FewstepError: one cannot be opened; the message names its setting, and what does without a download.
    """
    names = recipe.rewards
    alignment = opened("rewards.alignment", names.alignment, load_reward)
    return alignment, opened("rewards.quality", names.quality, load_reward)


def check(recipe: QSchedRecipe) -> None:
    """See that judge, feature networks, teacher and what stands beside can be opened; they are not kept in memory.

    Raises:
        FewstepError: see `rewards`.
    """
    settings = recipe.evaluation
    if settings.judge != "none":
        opened("evaluation.judge", settings.judge, load_reward)
    for spec in settings.features:
        opened("evaluation.features", spec, load_features)
    if settings.teacher != "none":
        opened("evaluation.teacher", settings.teacher, load_pipeline)
    for spec in settings.beside:
        opened("evaluation.beside", spec, load_pipeline)


def opened(setting: str, spec: str, load: Callable[[str], T]) -> T:
    """What `load` makes of the spec.

    Raises:
        FewstepError: see `rewards`.
    """
    try:
        return load(placed(spec))
    except Exception as error:  # transformers and its hub raise many kinds
        reason = error.what if isinstance(error, FewstepError) else (str(error).splitlines() or [repr(error)])[0]
        hint = (
            f"Download it (hf download ID), give a folder instead of the id, or go without: --set {WITHOUT[setting]}."
        )
        raise FewstepError(f"{setting} cannot be opened: {reason}", value=spec, hint=hint) from error
