"""Why a scheduler cannot be read as a plan, and which change of its settings makes it readable: tried, not guessed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.errors import PlanError, nearest

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
    """A scheduler does what no row of a plan can hold; the reason without a mend."""


def explained(scheduler: Any, refusal: UnreadableError, read: Callable[[Any], Any]) -> PlanError:
    """The refusal with a mend: the settings under which `read` accepts the scheduler, if there are any."""
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


LARGEST = 100_000
"""Largest whole number in a stored configuration: schedulers make tables and lists of such lengths."""


def from_configuration(configuration: Any) -> Any:
    """The scheduler of a stored configuration (`scheduler_config.json`), ours or one of diffusers.

    Raises:
        PlanError: it names no scheduler, or its settings are none that the class takes.
    """
    import diffusers

    from fewstep.plan.scheduler import PlanScheduler

    name = configuration.get("_class_name") if isinstance(configuration, dict) else None
    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    if name != "PlanScheduler" and name not in known:
        raise PlanError("not a scheduler of diffusers", value=name, hint=nearest(str(name), known))
    for key, count in configuration.items():
        if isinstance(count, int) and abs(count) > LARGEST:
            raise PlanError(f"{key} of the stored {name} is larger than {LARGEST}", value=count)
    made = PlanScheduler if name == "PlanScheduler" else getattr(diffusers, name)
    try:
        return made.from_config(configuration)
    except PlanError:
        raise
    except Exception as error:  # whatever its constructor stumbles over
        raise PlanError(
            f"{name} refuses its stored configuration: {error}", hint="Save the scheduler again."
        ) from error
