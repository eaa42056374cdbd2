"""What a user would run instead: the schedulers of diffusers, read as plans at a given number of evaluations."""

from __future__ import annotations

import inspect
from typing import Any

from fewstep.errors import FewstepError
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.pipelines.process import is_flow
from fewstep.plan import Plan

_GRIDS: dict[str, dict[str, Any]] = {
    "": {},
    "trailing": {"timestep_spacing": "trailing"},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "Lu": {"use_lu_lambdas": True},
}
_MULTISTEP = ("", "trailing", "Karras", "exponential", "Lu")
_DISCRETE: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "DDIM": ("DDIMScheduler", {}, ("", "trailing")),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, _MULTISTEP),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}, _MULTISTEP),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}, ("", "Karras")),
    "UniPC": ("UniPCMultistepScheduler", {}, ("", "trailing", "Karras", "exponential")),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}, ("", "trailing", "Karras", "exponential")),
    "DEIS": ("DEISMultistepScheduler", {}, ("", "trailing", "Karras")),
    "Euler": ("EulerDiscreteScheduler", {}, ("", "trailing", "Karras")),
    "Heun": ("HeunDiscreteScheduler", {}, ("", "trailing", "Karras")),
    "LMS": ("LMSDiscreteScheduler", {}, ("", "Karras")),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, ("", "trailing")),
}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_FLOWS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", {}, ("", "Karras")),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {}, ("",)),
    "flow DPM++ 2M": ("DPMSolverMultistepScheduler", _FLOW, ("",)),
    "flow DPM++ 3M": ("DPMSolverMultistepScheduler", {**_FLOW, "solver_order": 3}, ("",)),
    "flow UniPC": ("UniPCMultistepScheduler", _FLOW, ("",)),
    "flow UniPC 3": ("UniPCMultistepScheduler", {**_FLOW, "solver_order": 3}, ("",)),
}


def diffusers_plans(scheduler: Any, steps: int, flow_shift: float | None = None) -> dict[str, Plan]:
    """Plans of every deterministic scheduler of diffusers that makes exactly `steps` evaluations, by a readable name.

    Combinations that diffusers cannot run at this count (duplicate times, NaN) are left out: nobody can use them.

    Args:
        scheduler: the one the model came with; its training settings are kept.
        flow_shift: shift of a flow model, for schedulers that call it so.
    """
    import diffusers

    flow = is_flow(scheduler)
    found = {}
    for name, (class_name, settings, spacings) in (_FLOWS if flow else _DISCRETE).items():
        kind = getattr(diffusers, class_name)
        known = inspect.signature(kind.__init__).parameters
        for spacing in spacings:
            changes = {**settings, **_GRIDS[spacing]}
            if flow_shift is not None and flow:
                changes["flow_shift" if "flow_shift" in known else "shift"] = flow_shift
            if not set(changes) <= set(known):
                continue
            plan = _plan(kind, scheduler, changes, steps)
            if plan is not None:
                label = f"{name} {spacing}".strip()
                found[label] = plan.replace(origin={**plan.origin, "baseline": label})
    return found


def _plan(kind: Any, scheduler: Any, changes: dict[str, Any], steps: int) -> Plan | None:
    """The plan with `steps` evaluations, whatever diffusers counts as a step."""
    for asked in {steps, (steps + 1) // 2, steps - 1} - {0}:
        try:
            plan = plan_of_scheduler(kind.from_config(_plain(scheduler), **changes), asked)
        except (FewstepError, ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
            continue  # diffusers itself cannot run it
        if plan.steps == steps and not plan.stochastic:
            return plan
    return None


def _plain(scheduler: Any) -> dict[str, Any]:
    """The training settings of a scheduler, without those that choose its own grid."""
    own = ("timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    drop = (
        *own,
        "solver_order",
        "algorithm_type",
        "final_sigmas_type",
        "trained_betas",
        "skip_prk_steps",
        "_class_name",
    )
    return {
        k: v for k, v in dict(scheduler.config).items() if k not in drop or (k == "trained_betas" and v is not None)
    }
