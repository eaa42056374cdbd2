"""The process and the prediction of a pipeline's network, read from its scheduler."""

from __future__ import annotations

import math
from typing import Any

from fewstep.errors import FewstepError
from fewstep.pipelines.calls import recorded
from fewstep.plan.meaning import prediction_of
from fewstep.plan.scheduler import PlanScheduler
from fewstep.prediction import Prediction
from fewstep.process import VE, Process, RectifiedFlow, VPDiscrete


def process_of(pipe: Any, **call: Any) -> tuple[Process, Prediction]:
    """How the pipeline's network was trained: what solvers, searches and diagnostics need to know.

    Discrete diffusion comes with the very table of the scheduler, flows with their shift (the one that the pipeline
    would compute for this call where it depends on the size), EDM with its largest sigma. Which solver and grid the
    scheduler itself uses does not matter here.

    Args:
        pipe: any diffusers pipeline, with its own scheduler or with a plan attached.
        call: arguments of the pipeline call that decide the shift (`height`, `width`, ...).

    Raises:
        FewstepError: the scheduler is of an unknown kind, or its terminal signal is zero with a noise prediction.
    """
    scheduler = training_scheduler(pipe)
    config = scheduler.config
    if config.get("invert_sigmas"):
        raise _unknown(scheduler, "it inverts its sigmas")
    if hasattr(scheduler, "precondition_inputs"):
        return _edm(scheduler)
    if _is_flow(scheduler):
        shift = _shift(pipe, scheduler, call)
        return RectifiedFlow(shift, float(config.num_train_timesteps)), prediction_of(scheduler)
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise _unknown(scheduler, "it has neither alphas_cumprod nor flow or EDM sigmas")
    if config.get("timestep_type") == "continuous":
        raise _unknown(scheduler, "its network is told log sigma")
    prediction = prediction_of(scheduler)
    if not config.get("rescale_betas_zero_snr"):
        return VPDiscrete.from_scheduler(scheduler), prediction
    if prediction.kind in ("epsilon", "score"):
        raise FewstepError(
            f"the last time of {type(scheduler).__name__} has no signal, where a noise prediction says nothing",
            value={"rescale_betas_zero_snr": True, "prediction_type": config.prediction_type},
            mend="Set rescale_betas_zero_snr=False, or prediction_type='v_prediction' if the network was trained so.",
        )
    # schedulers in sigma space write 2^-24 for the zero that was asked for
    return VPDiscrete((*scheduler.alphas_cumprod[:-1].double().tolist(), 0.0)), prediction


def training_scheduler(pipe: Any) -> Any:
    """The scheduler that the pipeline came with, also under an attached plan.

    Raises:
        FewstepError: the pipeline has none, or its plan does not say which one it replaced.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise FewstepError(f"{type(pipe).__name__} has no scheduler", mend="Open a diffusion or flow pipeline.")
    if not isinstance(scheduler, PlanScheduler):
        return scheduler
    import diffusers

    replaced = scheduler.config.get("replaced") or {}
    known = getattr(diffusers, str(replaced.get("_class_name")), None)
    if known is None or not hasattr(known, "from_config"):
        raise FewstepError(
            "the pipeline follows a plan that does not say which scheduler it replaced",
            mend="Attach the plan with `fewstep.attach`, or open the pipeline with its own scheduler.",
        )
    try:
        return known.from_config({k: v for k, v in replaced.items() if k != "_class_name"})
    except Exception as error:  # whatever its constructor stumbles over
        what = f"the stored configuration of the replaced {known.__name__} is damaged: {error}"
        raise FewstepError(what, mend="Open the pipeline with its own scheduler, and attach the plan again.") from error


def _edm(scheduler: Any) -> tuple[Process, Prediction]:
    return VE(float(scheduler.config.sigma_max)), prediction_of(scheduler)


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return bool(config.get("use_flow_sigmas")) or type(scheduler).__name__.startswith("FlowMatch")


def _shift(pipe: Any, scheduler: Any, call: dict[str, Any]) -> float:
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        kept, pipe.scheduler = pipe.scheduler, scheduler  # pipelines read their numbers from its configuration
        try:
            mu = recorded(pipe, 2, "set_timesteps", **call).times.get("mu")
        finally:
            pipe.scheduler = kept
        if mu is None:
            raise _unknown(scheduler, "its shift depends on the size, but the pipeline passes no mu")
        return float(mu) if config.get("time_shift_type") == "linear" else math.exp(float(mu))
    return float(config.get("flow_shift") or config.get("shift") or 1.0)


def _unknown(scheduler: Any, reason: str) -> FewstepError:
    return FewstepError(
        f"{type(scheduler).__name__} does not tell the process of the network: {reason}",
        mend="Use a pipeline with a discrete (alphas_cumprod), flow-matching or EDM scheduler, or read its plan with "
        "`fewstep.plan_of`.",
    )
