"""The process and the prediction of a pipeline's network, read from its scheduler."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.errors import FewstepError
from fewstep.pipelines.calls import recorded
from fewstep.pipelines.probing import level, prediction_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.pipelines.replaced import made_again
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.prediction import Prediction
from fewstep.process import VE, Process, RectifiedFlow, VPDiscrete


def process_of(pipe: Pipeline, **call: Any) -> tuple[Process, Prediction]:
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
    behaviour = _behaviour(scheduler, _mu(pipe, scheduler, call))
    if behaviour.rising:
        raise _unknown(scheduler, "it inverts its sigmas")
    if hasattr(scheduler, "precondition_outputs"):
        return _edm(scheduler, behaviour)
    if behaviour.flow:
        return _flow(scheduler, behaviour), prediction_of(scheduler)
    config = scheduler.config
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise _unknown(scheduler, "it has neither alphas_cumprod nor flow or EDM sigmas")
    prediction = prediction_of(scheduler)
    if prediction.kind == "v_prediction" and behaviour.c_noise:
        return _continuous(scheduler)
    _check_table(scheduler, behaviour)
    if not config.get("rescale_betas_zero_snr") or float(scheduler.alphas_cumprod[-1]) > 1e-6:
        return VPDiscrete.from_scheduler(scheduler), prediction
    if prediction.kind in ("epsilon", "score"):
        raise FewstepError(
            f"the last time of {type(scheduler).__name__} has no signal, where a noise prediction says nothing",
            value={"rescale_betas_zero_snr": True, "prediction_type": config.prediction_type},
            hint="Set rescale_betas_zero_snr=False, or prediction_type='v_prediction' if the network was trained so.",
        )
    # schedulers in sigma space write 2^-24 for the zero that was asked for
    return VPDiscrete((*scheduler.alphas_cumprod[:-1].double().tolist(), 0.0)), prediction


def training_scheduler(pipe: Pipeline) -> Any:
    """The scheduler that the pipeline came with, also under an attached plan.

    Raises:
        FewstepError: the pipeline has none, or its plan does not say which one it replaced.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise FewstepError(f"{type(pipe).__name__} has no scheduler", hint="Open a diffusion or flow pipeline.")
    if not isinstance(scheduler, PlanScheduler):
        return scheduler
    return made_again(scheduler.config.get("replaced") or {})


@dataclass(frozen=True)
class _Behaviour:
    """What a scheduler does on a plain grid: the times it tells, and the levels (alpha, sigma) it noises to there."""

    times: tuple[float, ...]
    levels: tuple[tuple[float, float], ...]
    shift: float | None
    """The shift that the pipeline decides, where it depends on the size."""

    @property
    def rising(self) -> bool:
        return self.levels[-1][1] > self.levels[0][1]

    @property
    def flow(self) -> bool:
        return all(abs(alpha + sigma - 1) < 1e-4 for alpha, sigma in self.levels)

    @property
    def c_noise(self) -> bool:
        """Whether it tells EDM's log(sigma) / 4."""
        return all(
            abs(time - VE().network_time(sigma / alpha)) <= 1e-3 * (1 + abs(time)) if alpha and sigma else False
            for time, (alpha, sigma) in zip(self.times, self.levels, strict=True)
        )


_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal")
"""Settings that choose a grid, which is no part of the process."""


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler noises along the straight path of flows, whatever its class or configuration says.

    Raises:
        FewstepError: it accepts no step count.
    """
    return _behaviour(scheduler, None).flow


def _behaviour(scheduler: Any, mu: float | None) -> _Behaviour:
    """At up to seven times: fewer where a time stands twice, or where the scheduler takes so few steps only."""
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    if mu is None and "mu" in accepted and scheduler.config.get("use_dynamic_shifting"):
        mu = 0.0  # any shift: the path stays the same
    given = {} if mu is None or "mu" not in accepted else {"mu": mu}
    for count in (7, 4, 2, 1):
        work = copy.deepcopy(scheduler)
        work.register_to_config(**{name: None for name in _GRIDS if work.config.get(name)})
        try:
            work.set_timesteps(count, **given)
            times = [float(time) for time in work.timesteps]
            places = [k for k, time in enumerate(times) if time not in times[:k]]
            found = tuple(_level(work, k) for k in places)
        except Exception:
            continue
        linear = scheduler.config.get("time_shift_type") == "linear"
        shift = None if mu is None else float(mu) if linear else math.exp(mu)
        return _Behaviour(tuple(times[k] for k in places), found, shift)
    raise _unknown(scheduler, "it cannot be asked for its noise levels")


def _level(work: Any, k: int) -> tuple[float, float]:
    asked = copy.deepcopy(work)
    if hasattr(asked, "set_begin_index"):
        asked.set_begin_index(k)
    return level(asked, work.timesteps[k].detach().cpu(), 1.0)


def _edm(scheduler: Any, behaviour: _Behaviour) -> tuple[Process, Prediction]:
    if not behaviour.c_noise:
        raise _unknown(scheduler, "its network is not told log(sigma) / 4")
    return VE(_written(behaviour.levels[0][1], scheduler.config.get("sigma_max"))), prediction_of(scheduler)


def _continuous(scheduler: Any) -> tuple[Process, Prediction]:
    """`timestep_type="continuous"` with v_prediction: EDM's times and input scale on data of deviation 1.

    Its grid may begin above the noisiest level of its table (`sigma_max` 700 in Stable Video Diffusion).
    """
    last = float(scheduler.alphas_cumprod[-1])
    sigma = scheduler.config.get("sigma_max") or math.sqrt((1 - last) / last)
    return VE(float(sigma)), Prediction("edm", sigma_data=1.0, sign=-1.0)


def _flow(scheduler: Any, behaviour: _Behaviour) -> Process:
    """The shift s with which even times t become its levels s t / (1 + (s - 1) t)."""
    scale = float(scheduler.config.get("num_train_timesteps") or 1000)
    sigmas = [sigma for _, sigma in behaviour.levels]
    if any(abs(time - scale * sigma) > 1.0 for time, sigma in zip(behaviour.times, sigmas, strict=True)):
        raise _unknown(scheduler, f"its network is not told {scale:g} sigma")
    if len(sigmas) < 3:
        raise _unknown(scheduler, "it takes too few steps to show its shift")
    shift, other = _shift_of(sigmas), _shift_of(sigmas[1 : 2 * ((len(sigmas) - 2) // 2) + 2])
    if shift is None or other is None or abs(shift - other) > 0.01 * shift:
        raise _unknown(scheduler, "its noise levels are no shift of even times")
    config = scheduler.config
    named = (behaviour.shift, config.get("flow_shift"), config.get("shift"), getattr(scheduler, "shift", None), 1.0)
    return RectifiedFlow(_written(shift, *named), scale)


def _shift_of(sigmas: Sequence[float]) -> float | None:
    """From three equidistant entries: t = 1 / (1 + s r) with r = (1 - sigma) / sigma is even in them."""
    first, middle, last = ((1 - sigma) / sigma for sigma in (sigmas[0], sigmas[len(sigmas) // 2], sigmas[-1]))
    below = middle * (first + last) - 2 * first * last
    shift = (first + last - 2 * middle) / below if below else 0.0
    return shift if shift > 0 else None


def _written(value: float, *named: Any) -> float:
    """The number of the configuration that a measured value is, or the value itself."""
    for one in named:
        if isinstance(one, int | float) and abs(one - value) <= 1e-3 * abs(value):
            return float(one)
    return value


def _check_table(scheduler: Any, behaviour: _Behaviour) -> None:
    """The network must be told the index in the table of the level that it sees."""
    table = scheduler.alphas_cumprod.double()
    k = len(behaviour.times) // 2
    time, (alpha, sigma) = behaviour.times[k], behaviour.levels[k]
    known = float(table[min(max(round(time), 0), len(table) - 1)])
    wanted = math.sqrt((1 - known) / max(known, 1e-12))
    if not 0.5 < sigma / max(alpha, 1e-6) / max(wanted, 1e-6) < 2:
        raise _unknown(scheduler, "its network is told log sigma, or another time than the index of its noise level")


def _mu(pipe: Pipeline, scheduler: Any, call: dict[str, Any]) -> float | None:
    """The size's part in the shift, as the pipeline computes it for this call."""
    if not scheduler.config.get("use_dynamic_shifting"):
        return None
    if "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
        return None  # left in the configuration by another class
    mu = recorded(pipe, 2, "set_timesteps", scheduler=scheduler, **call).times.get("mu")
    if mu is None:
        raise _unknown(scheduler, "its shift depends on the size, but the pipeline passes no mu")
    return float(mu)


def _unknown(scheduler: Any, reason: str) -> FewstepError:
    return FewstepError(
        f"{type(scheduler).__name__} does not tell the process of the network: {reason}",
        hint="Use a pipeline with a discrete (alphas_cumprod), flow-matching or EDM scheduler, or read its plan with "
        "`fewstep.plan_of`.",
    )
