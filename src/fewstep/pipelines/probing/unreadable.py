"""Why a scheduler cannot be read as a plan, and which change of its settings makes it readable: tried, not guessed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.errors import PlanError

SWITCHES = ("thresholding", "clip_sample")
"""Settings that make `step` non-linear in the classes that have them."""
CHANGES: tuple[dict[str, Any], ...] = (
    {"variance_type": "fixed_small"},
    {"steps_offset": 0},
    {"final_sigmas_type": "sigma_min"},
    {"lower_order_final": True},
    {"algorithm_type": "dpmsolver++"},
    {"use_beta_sigmas": False},
    {"use_karras_sigmas": False},
    {"use_exponential_sigmas": False},
    {"rescale_betas_zero_snr": False},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing"},
)
"""Settings that make schedulers finite or deterministic, the least intrusive first."""


class UnreadableError(PlanError):
    """A scheduler does what no row of a plan can hold; the reason without a hint."""


def explained(scheduler: Any, refusal: UnreadableError, read: Callable[[Any], Any]) -> PlanError:
    """The refusal with a hint: the settings under which `read` accepts the scheduler, if there are any."""
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", {})
    on = [switch for switch in SWITCHES if config.get(switch)]
    for change in (dict.fromkeys(on, False), *({switch: False} for switch in on), *CHANGES):
        if not _reads(scheduler, change, read):
            continue
        settings = ", ".join(f"{key}={value!r}" for key, value in change.items())
        hint = f"Make it with {name}.from_config(scheduler.config, {settings})."
        if set(change) <= set(SWITCHES):
            what = f"{name} has {' and '.join(f'{key}=True' for key in change)}, which is not linear"
            return PlanError(what, hint=hint)
        return PlanError(f"{name} cannot be read as a plan: {refusal.what}", hint=hint)
    return PlanError(
        f"{name} cannot be read as a plan: {refusal.what}",
        hint="Use a linear scheduler (DDIM, Euler, DPMSolverMultistep, UniPC, LCM, TCD, FlowMatchEuler, ...).",
    )


def _reads(scheduler: Any, change: Mapping[str, Any], read: Callable[[Any], Any]) -> bool:
    made = type(scheduler)
    taken = inspect.signature(made.__init__).parameters
    if not change or not hasattr(made, "from_config") or any(name not in taken for name in change):
        return False
    if all(scheduler.config.get(name) == value for name, value in change.items()):
        return False
    try:
        read(made.from_config(scheduler.config, **change))
    except Exception:  # whatever a scheduler says to settings that it does not support
        return False
    return True


def for_another_count(scheduler: Any, steps: int, settings: Mapping[str, Any], ready: Callable[[int], Any]) -> str:
    """What to do when `set_timesteps` refuses: another count if one is accepted, else what is missing."""
    if scheduler.config.get("use_dynamic_shifting") and settings.get("mu") is None:
        return (
            "Its shift depends on the size of the picture: read the plan of the whole pipeline "
            "(`fewstep.plan_of`, or `fewstep plan import` of the pipeline's folder), or pass its `mu`."
        )
    for count in (steps - 1, steps + 1, steps // 2, 10, 4, 2):
        if 1 <= count != steps:
            try:
                ready(count)
            except Exception:
                continue
            return "Choose another step count."
    return "Check its settings; no step count is accepted with them."
