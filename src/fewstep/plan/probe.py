"""Read a plan out of a diffusers scheduler by watching what `step()` does to basis tensors.

A linear scheduler works element by element, so each element of a probe tensor can carry one symbol: element j < K
stands for the state x_j, element K + j for the raw output n_j, one more for the noise it draws, the last for nothing.
Feeding unit vectors returns the coefficients themselves, whatever the scheduler keeps inside (histories, correctors).
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError, nearest
from fewstep.plan.plan import Identity, Plan, Row
from fewstep.prediction import KINDS, Prediction

NEGLIGIBLE = 1e-12
"""Coefficients below this are zero: what exact cancellation leaves in float64."""


def probe(
    scheduler: Any,
    steps: int,
    *,
    set_timesteps: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    identity: Identity | None = None,
) -> Plan:
    """The plan that `scheduler` follows over `steps` steps; the scheduler itself is left untouched.

    Args:
        scheduler: any diffusers scheduler whose `step` is linear in the state and the network output.
        steps: number of inference steps, as a pipeline would pass it.
        set_timesteps: further arguments of `scheduler.set_timesteps` (`sigmas`, `mu`, `timesteps`, ...).
        step: further arguments of `scheduler.step` (`eta`, ...).
        identity: what the plan belongs to.

    Raises:
        PlanError: the scheduler is not linear (thresholding, clipping), draws its noise in an unknown way, or refuses
            the arguments.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise PlanError("steps must be a positive whole number", value=steps, mend="Pass steps=4, for instance.")
    _refuse_known_nonlinear(scheduler)
    work = _prepared(scheduler, steps, dict(set_timesteps or {}))
    prober = _Prober(work, dict(step or {}))
    rows = tuple(prober.row(k, time) for k, time in enumerate(work.timesteps.detach().cpu()))
    prediction = prediction_of(work)
    final_alpha, final_sigma = reached(rows, len(rows) - 1, prediction)
    return Plan(
        rows=rows,
        prediction=prediction,
        final_alpha=final_alpha,
        final_sigma=final_sigma,
        prior_scale=float(getattr(work, "init_noise_sigma", 1.0)),
        origin={"scheduler": type(scheduler).__name__, "steps": steps, "settings": _plain(scheduler.config)},
        identity=identity or Identity(),
    )


def reached(rows: tuple[Row, ...], k: int, prediction: Prediction) -> tuple[float, float]:
    """The signal and noise scale (alpha, sigma) of the state that row k leads to.

    If data and noise were the same at every row, each state is alpha_j x0 + sigma_j eps exactly, and any consistent row
    keeps that form: its coefficients then say which (alpha, sigma) it lands on, and added noise adds in quadrature.
    """
    row, data, noise = rows[k], 0.0, 0.0
    for j, c in row.state.items():
        data, noise = data + float(c) * float(rows[j].alpha), noise + float(c) * float(rows[j].sigma)
    for j, c in row.output.items():
        scale = float(rows[j].input_scale)
        a, b = prediction.weights(scale * float(rows[j].alpha), scale * float(rows[j].sigma))
        data, noise = data + float(c) * a, noise + float(c) * b
    total = math.hypot(noise, float(row.noise))
    return max(data, 0.0), 0.0 if total < 1e-6 else total


class _Prober:
    """Feeds basis tensors to one working copy of the scheduler, step after step."""

    def __init__(self, scheduler: Any, settings: dict[str, Any]) -> None:
        accepted = inspect.signature(scheduler.step).parameters
        for name in settings:
            if name not in accepted:
                what = f"{type(scheduler).__name__}.step takes no argument {name!r}"
                raise PlanError(what, mend=nearest(name, accepted))
        self.scheduler, self.settings = scheduler, settings
        self.count = len(scheduler.timesteps)

    def row(self, k: int, time: Tensor) -> Row:
        alpha, sigma = self._level(time)
        scale = self._input_scale(time)
        before = copy.deepcopy(self.scheduler)
        vector = self._step(self.scheduler, time, self._unit(self.count + k), self._unit(k))
        if abs(float(vector[-1])) > 1e-6:
            raise self._refusal(f"row {k} adds the constant {float(vector[-1]):.3g}")
        self._check_linear(before, k, time, vector)
        return Row(
            time=float(time),
            network_time=float(time),
            alpha=alpha,
            sigma=sigma,
            state=_nonzero(vector[: self.count]),
            output=_nonzero(vector[self.count : 2 * self.count]),
            noise=abs(float(vector[-2])) if abs(float(vector[-2])) > NEGLIGIBLE else 0.0,
            input_scale=scale,
        )

    def _unit(self, index: int, size: float = 1.0) -> Tensor:
        unit = torch.zeros(2 * self.count + 2, dtype=torch.float64)
        unit[index] = size
        return unit

    def _step(self, scheduler: Any, time: Tensor, output: Tensor, state: Tensor) -> Tensor:
        shape = (1, 1, 1, -1)
        try:
            with _noise_symbol(scheduler):
                result = scheduler.step(
                    output.reshape(shape), time, state.reshape(shape), return_dict=False, **self.settings
                )
        except PlanError:
            raise
        except Exception as error:
            raise self._refusal(f"step() failed on a probe tensor ({error})") from error
        return result[0].detach().double().reshape(-1)

    def _check_linear(self, before: Any, k: int, time: Tensor, vector: Tensor, size: float = -60.0) -> None:
        """Feed the same symbols, much larger and negative: clipping, thresholds and foreign noise show."""
        fed = self._step(copy.deepcopy(before), time, self._unit(self.count + k, size), self._unit(k, size))
        expected = vector.clone()
        expected[[k, self.count + k]] *= size
        worst = float((fed - expected).abs().max() / (1 + expected.abs().max()))
        if not worst < 1e-4:
            raise self._refusal(f"row {k} is not linear in its inputs (relative departure {worst:.2g})")

    def _level(self, time: Tensor) -> tuple[float, float]:
        """(alpha, sigma) at this step: what the scheduler's own noising does to (1, 0) and (0, 1)."""
        work = copy.deepcopy(self.scheduler)
        one, zero, at = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), time.reshape(1)
        if hasattr(work, "add_noise"):
            return float(work.add_noise(one, zero, at)), float(work.add_noise(zero, one, at))
        if hasattr(work, "scale_noise"):
            return float(work.scale_noise(one, at, zero)), float(work.scale_noise(zero, at, one))
        raise self._refusal("it has neither add_noise nor scale_noise, so its noise levels are unknown")

    def _input_scale(self, time: Tensor) -> float:
        if not hasattr(self.scheduler, "scale_model_input"):
            return 1.0
        return float(self.scheduler.scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), time))

    def _refusal(self, reason: str) -> PlanError:
        return PlanError(
            f"{type(self.scheduler).__name__} cannot be read as a plan: {reason}",
            mend="Use a linear scheduler (DDIM, Euler, DPMSolverMultistep, UniPC, LCM, TCD, FlowMatchEuler, ...).",
        )


@contextmanager
def _noise_symbol(scheduler: Any) -> Iterator[None]:
    """Make the scheduler draw the noise symbol (second to last element) instead of random numbers, once per step."""
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
    drawn = 0

    def symbol(shape: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
        nonlocal drawn
        drawn += 1
        noise = torch.zeros(tuple(shape), dtype=dtype)
        noise[..., -2] = 1.0
        return noise

    if original is not None:
        module.randn_tensor = symbol  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if original is not None:
            module.randn_tensor = original  # type: ignore[attr-defined]
    if drawn > 1:
        raise PlanError(f"{type(scheduler).__name__} draws noise {drawn} times per step", mend="Use another scheduler.")


def _prepared(scheduler: Any, steps: int, settings: dict[str, Any]) -> Any:
    work = copy.deepcopy(scheduler)
    own_grid = any(settings.get(name) is not None for name in ("sigmas", "timesteps"))
    accepted = inspect.signature(work.set_timesteps).parameters
    for name in settings:
        if name not in accepted:
            what = f"{type(work).__name__}.set_timesteps takes no argument {name!r}"
            raise PlanError(what, mend=nearest(name, accepted))
    try:
        if own_grid:
            work.set_timesteps(**settings)
        else:
            work.set_timesteps(steps, **settings)
    except Exception as error:
        raise PlanError(
            f"{type(work).__name__}.set_timesteps refused {steps} steps: {error}",
            mend="Choose another step count.",
        ) from error
    return work


def _refuse_known_nonlinear(scheduler: Any) -> None:
    config = getattr(scheduler, "config", {})
    for switch in ("thresholding", "clip_sample"):
        if config.get(switch):
            raise PlanError(
                f"{type(scheduler).__name__} has {switch}=True, which is not linear",
                mend=f"Make it with {type(scheduler).__name__}.from_config(scheduler.config, {switch}=False).",
            )


def prediction_of(scheduler: Any) -> Prediction:
    """What the output means of a network that this diffusers scheduler runs (PlanError if unknown)."""
    config = scheduler.config
    kind = config.get("prediction_type")
    if hasattr(scheduler, "precondition_inputs") and kind == "epsilon":
        return Prediction("edm", sigma_data=float(config.get("sigma_data", 0.5)))
    if kind == "flow_prediction" or (kind is None and hasattr(scheduler, "scale_noise")):
        return Prediction("velocity")
    if kind not in KINDS:
        raise PlanError("unknown prediction_type in the scheduler", value=kind, mend=nearest(str(kind), KINDS))
    return Prediction(kind)


def _nonzero(vector: Tensor) -> dict[int, float]:
    return {j: float(c) for j, c in enumerate(vector) if abs(float(c)) > NEGLIGIBLE}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON part of a scheduler's configuration; an infinite setting (a clip that is off) becomes text."""
    kinds = (str, int, float, bool, type(None))
    plain = {k: v for k, v in config.items() if isinstance(v, kinds) and not k.startswith("_")}
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
