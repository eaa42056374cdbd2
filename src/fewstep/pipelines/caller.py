"""The pipeline call that a scheduler serves, and whether its plan can honour it.

diffusers does not tell a scheduler who calls it, and `from_pipe` hands one scheduler to several pipelines, so whoever
is noted beforehand may be the wrong one. The call that is running is the only reliable source; it is looked up on the
stack once per call, and nothing is kept.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fewstep.errors import IdentityError
from fewstep.pipelines.adapters import check_adapters
from fewstep.pipelines.calls import counts_from_zero
from fewstep.pipelines.identity import identity_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan

SCHEDULE = ("timesteps", "sigmas", "eta", "mu", "shift", "original_inference_steps", "use_clipped_model_output")
"""Arguments of pipeline calls that change what a scheduler does; a plan has decided them."""

_SIZE_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""What pipelines compute `mu` from, with the values they take where the configuration has none."""


@dataclass(frozen=True)
class Caller:
    """A running call: the pipeline, and the arguments that its user gave."""

    pipe: Pipeline
    given: Mapping[str, Any]

    @classmethod
    def of(cls, scheduler: Any) -> Caller | None:
        """The innermost running pipeline call with this scheduler; None where no pipeline is running."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "__call__":
                pipe: Any = frame.f_locals.get("self")
                if getattr(pipe, "__dict__", {}).get("scheduler") is scheduler:
                    return cls(pipe, _given(frame, type(pipe)))
            frame = frame.f_back
        return None

    @property
    def running(self) -> bool:
        """Whether a method of the pipeline is running: after an interrupted call, its network belongs to others."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_locals.get("self") is self.pipe:
                return True
            frame = frame.f_back
        return False

    @property
    def guidance(self) -> float | None:
        """The scale of classifier-free guidance, 1 without; None where the pipeline knows none."""
        scale = getattr(self.pipe, "guidance_scale", None)
        return None if scale is None else float(scale) + counts_from_zero(self.pipe)

    @property
    def true_guidance(self) -> float:
        """The scale of a second, negative evaluation beside an embedded guidance (FLUX, Qwen-Image); 1 without."""
        scale = self.given.get("true_cfg_scale")
        if scale is None:
            named = inspect.signature(type(self.pipe).__call__).parameters.get("true_cfg_scale")
            scale = 1.0 if named is None else named.default
        negative = any(value is not None for name, value in self.given.items() if name.startswith("negative_"))
        return float(scale) if negative else 1.0


def check_call(plan: Plan, caller: Caller, adapters: Mapping[str, Any]) -> None:
    """Refuse to serve a call of another model, quantization, guidance or adapter, or with a schedule of its own.

    Raises:
        IdentityError: what the plan belongs to differs.
    """
    plan.check(identity_of(caller.pipe, caller.guidance, fingerprinted=plan.identity.model is not None))
    if plan.identity.guidance == 1.0 and caller.true_guidance > 1.0:
        raise IdentityError(
            "this plan belongs to a model that runs without guidance",
            value={"true_cfg_scale": caller.true_guidance},
            hint="Leave out the negative prompt, or call the pipeline with true_cfg_scale=1.",
        )
    check_adapters(caller.pipe, adapters)
    refuse_schedule(plan, type(caller.pipe), caller.given)


def refuse_schedule(plan: Plan, kind: type, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a pipeline's call that the plan would ignore: it fixes times and noise.

    Raises:
        IdentityError: an argument differs from what the plan was read or made with.
    """
    accepted = inspect.signature(kind.__call__).parameters
    for name in SCHEDULE:
        if name not in given or name not in accepted:
            continue
        known = {**plan.origin, **(plan.origin.get("call") or {})}
        wanted = known.get(name, accepted[name].default)
        if not _equal(given[name], wanted):
            raise IdentityError(
                f"the plan fixes the schedule, and would ignore {name}",
                value=given[name],
                hint=f"Leave {name} out, or read a plan with it: fewstep.plan_of(pipe, steps, {name}=...).",
            )


def refuse_shift(plan: Plan, replaced: Mapping[str, Any], config: Mapping[str, Any], mu: float | None) -> None:
    """Refuse a picture of another size where the noise levels depend on the size.

    Args:
        plan: knows the shift that it was made with, or nothing is checked.
        replaced: configuration of the pipeline's own scheduler.
        config: what the pipeline computed mu from.
        mu: what it handed over.

    Raises:
        IdentityError: the plan was made for another shift.
    """
    wanted = plan.origin.get("shift")
    if mu is None or wanted is None or not replaced.get("use_dynamic_shifting"):
        return
    if any(replaced.get(k, v) != config.get(k, v) for k, v in _SIZE_SHIFT.items()):
        return
    found = shift_of(replaced, mu)
    if not math.isclose(found, float(wanted), rel_tol=1e-3):
        raise IdentityError(
            f"this plan is for the noise levels of another size (shift {wanted:.4g})",
            value=round(found, 4),
            hint="Use the height, width and length it was made for, or make a plan with `fewstep.plan_of(pipe, steps, "
            "height=..., width=...)` of a pipeline that still has its own scheduler.",
        )


def step_counts(plan: Plan) -> dict[int, int]:
    """The step counts that a pipeline may call a plan with, and how many rows it takes for one step at each.

    Every plan can be called by its rows, which are network evaluations. One that was read from a scheduler whose steps
    have several (Heun, KDPM2, PNDM) can also be called as that scheduler is.
    """
    counts = {plan.steps: 1}
    read, order = plan.origin.get("steps"), plan.origin.get("order")
    if type(read) is int and type(order) is int and 1 <= read < plan.steps and order >= 1:
        counts[read] = order
    return counts


def rows_per_step(plan: Plan, asked: int | None, **settings: Any) -> int:
    """How many rows a call with so many steps takes for each.

    settings: what the pipeline hands over beside the count, which must be what the plan was read with.

    Raises:
        IdentityError: another count than the plan has, or other settings.
    """
    counts = step_counts(plan)
    if asked not in counts:
        hint = f"Call the pipeline with num_inference_steps={min(counts)}."
        raise IdentityError(f"this plan has {plan.steps} steps", value=asked, hint=hint)
    for name, value in settings.items():
        wanted = plan.origin.get(name)
        if value is not None and wanted is not None and value != wanted:
            hint = f"Use {name}={wanted}, or read a plan with it: fewstep.plan_of(pipe, steps, {name}=...)."
            raise IdentityError(f"this plan was read with {name}={wanted}", value=value, hint=hint)
    return counts[asked]


def shift_of(config: Mapping[str, Any], mu: float) -> float:
    """The shift of the noise levels that a dynamic `mu` stands for."""
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(float(mu))


def _given(frame: FrameType, kind: type) -> dict[str, Any]:
    """The arguments as the user gave them: pipelines fill their own variables later, torch's decorator keeps ours."""
    own = (vars(base)["__call__"] for base in kind.__mro__ if "__call__" in vars(base))
    function = next((f for f in own if getattr(inspect.unwrap(f), "__code__", None) is frame.f_code), None)
    if function is None:
        return {}
    outer, signature = frame.f_back, inspect.signature(function)
    if outer is not None and outer.f_code.co_name == "decorate_context":
        args, kwargs = outer.f_locals.get("args", ()), outer.f_locals.get("kwargs", {})
        given = dict(signature.bind_partial(*args, **kwargs).arguments)
        further = given.pop("kwargs", {})
        return {**given, **further}
    filled = ("timesteps", "sigmas", "mu")  # what pipelines put in by themselves
    known = {n: frame.f_locals[n] for n in signature.parameters if n in frame.f_locals and n not in filled}
    return {n: v for n, v in known.items() if not _equal(v, signature.parameters[n].default)}


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments are the same; lists, arrays and tensors by their numbers."""
    if one is None or other is None or isinstance(one, str | bool) or isinstance(other, str | bool):
        return bool(one is other or (isinstance(one, str | bool) and one == other))
    try:
        left, right = ([float(n) for n in value] for value in (_listed(one), _listed(other)))
    except (TypeError, ValueError):
        return one is other
    return len(left) == len(right) and all(map(math.isclose, left, right))


def _listed(value: Any) -> list[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value]
