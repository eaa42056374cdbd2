"""The scheduler whose place a plan has taken: noted in a configuration, and made again from it."""

from __future__ import annotations

import math
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from fewstep.errors import FewstepError, PlanError

COMPATIBLE = [
    *(kind.name for kind in KarrasDiffusionSchedulers),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler"),
    *("LCMScheduler", "TCDScheduler", "SASolverScheduler", "CogVideoXDDIMScheduler"),
]
"""Schedulers whose settings may stand beside a plan without a warning of diffusers."""


def settings_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a pipeline's own scheduler, class name included."""
    ours = ("plan", "replaced", "adapters")  # left by a scheduler that was made from our configuration
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and k not in ours}
    if "shift" in settings and hasattr(scheduler, "shift"):  # what set_shift has changed since
        settings["shift"] = scheduler.shift
    return {"_class_name": public_name(scheduler), **settings}


def made_again(replaced: dict[str, Any]) -> Any:
    """The scheduler that `settings_of` noted.

    Raises:
        FewstepError: nothing is noted, or the class refuses it.
    """
    known = getattr(diffusers, str(replaced.get("_class_name")), None)
    if known is None or not hasattr(known, "from_config"):
        raise FewstepError(
            "the pipeline follows a plan that does not say which scheduler it replaced",
            hint="Attach the plan with `fewstep.attach`, or open the pipeline with its own scheduler.",
        )
    try:
        return known.from_config({k: v for k, v in replaced.items() if k != "_class_name"})
    except Exception as error:  # whatever its constructor stumbles over
        what = f"the stored configuration of the replaced {known.__name__} is damaged: {error}"
        raise FewstepError(what, hint="Open the pipeline with its own scheduler, and attach the plan again.") from error


def public_name(scheduler: Any) -> str:
    """The class of diffusers that a scheduler is, or that a user's own class extends."""
    names = (kind.__name__ for kind in type(scheduler).__mro__ if getattr(diffusers, kind.__name__, None) is kind)
    return next(names, type(scheduler).__name__)


def check_entries(replaced: Any, adapters: Any) -> None:
    """Refuse entries of a stored configuration that are not what `fewstep.attach` writes (PlanError)."""
    hint = "Attach the plan again with `fewstep.attach`, and save."
    if replaced is not None and not (isinstance(replaced, dict) and isinstance(replaced.get("_class_name"), str)):
        raise PlanError("`replaced` must be the configuration of a scheduler", value=replaced, hint=hint)
    for name, entry in (adapters if isinstance(adapters, dict) else {"": adapters} if adapters else {}).items():
        weight = entry.get("weight") if isinstance(entry, dict) else None
        known = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not name or not known or not isinstance(entry.get("fingerprint"), str):
            raise PlanError("`adapters` must tell a fingerprint and a weight for every name", value=adapters, hint=hint)
