"""Read a plan out of a diffusers scheduler by watching what `step()` does to basis tensors.

A linear scheduler works element by element, so each element of a probe tensor can carry one symbol: element j < K
stands for the state x_j, element K + j for the raw output n_j, the next ones for the noise it draws, the last for
nothing. Feeding unit vectors returns the coefficients themselves, whatever the scheduler keeps inside (histories,
correctors). Nothing is taken from the scheduler's class or configuration that its behaviour can tell.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, PlanError, nearest
from fewstep.pipelines.probing.draws import Draws, StepCoefficients, with_fresh_noise
from fewstep.pipelines.probing.meaning import check_meaning, input_scale, level, prediction_of
from fewstep.pipelines.probing.unreadable import UnreadableError, explained, for_another_count
from fewstep.plan import Identity, Plan, Row
from fewstep.prediction import Prediction

NEGLIGIBLE = 1e-12
"""Coefficients below this are zero: what exact cancellation leaves in float64."""
LARGE = -1e6
"""Symbols are fed once more at this size: clipping, thresholds and other bounds show."""


def plan_of_scheduler(
    scheduler: Any,
    steps: int,
    *,
    set_timesteps: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    identity: Identity | None = None,
) -> Plan:
    """The plan that `scheduler` follows over `steps` steps; the scheduler itself is left untouched.

    A plan may have more rows than `steps`, where a step runs the network twice (Heun, KDPM2, PNDM).

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
        raise PlanError("steps must be a positive whole number", value=steps, hint="Pass steps=4, for instance.")
    for name in ("set_timesteps", "step", "config"):
        if not hasattr(scheduler, name):
            raise PlanError(f"{type(scheduler).__name__} is no scheduler of images: it has no {name}")
    times, settings = dict(set_timesteps or {}), dict(step or {})

    def read(one: Any) -> Plan:
        try:
            return _read(one, steps, times, settings, identity or Identity())
        except FewstepError:
            raise
        except Exception as error:  # whatever a scheduler of damaged settings stumbles over
            raise UnreadableError(f"it {_failed(error)}") from error

    try:
        return read(scheduler)
    except UnreadableError as refusal:
        raise explained(scheduler, refusal, read) from refusal


def _read(scheduler: Any, steps: int, times: dict[str, Any], settings: dict[str, Any], identity: Identity) -> Plan:
    work = _prepared(scheduler, steps, times)
    rows = _Prober(work, settings).rows()
    prediction = prediction_of(work)
    final_alpha, final_sigma = reached(rows, len(rows) - 1, prediction)
    check_meaning(rows, prediction)
    return Plan(
        rows=rows,
        prediction=prediction,
        final_alpha=final_alpha,
        final_sigma=final_sigma,
        prior_scale=float(getattr(work, "init_noise_sigma", 1.0)),
        origin={
            **_plain({**times, **settings}),
            "scheduler": type(scheduler).__name__,
            "steps": steps,
            "order": int(getattr(work, "order", 1)),
            "settings": _plain(scheduler.config),
        },
        identity=identity,
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


_Reading = tuple[dict[str, float], StepCoefficients]
"""One row as it was read: where its state stands (`alpha`, `sigma`, `input_scale`), and what its step adds up."""


class _Prober:
    """Feeds basis tensors to working copies of a scheduler, step after step."""

    def __init__(self, scheduler: Any, settings: dict[str, Any]) -> None:
        _check_taken(scheduler.step, settings)
        self.fresh, self.settings = scheduler, settings
        accepted = inspect.signature(scheduler.step).parameters
        self.looks_back, self.looks_ahead = "old_pred_original_sample" in accepted, "prev_timestep" in accepted
        self.times = list(scheduler.timesteps.detach().cpu())
        self.count = self.room = len(self.times)

    def rows(self) -> tuple[Row, ...]:
        if not self.times:
            raise UnreadableError("it has no times")
        readings = self._readings()
        if self.drawn > self.room:  # several draws per step: now it is known how many need an element
            self.room = self.drawn
            readings = self._readings()
        updates = with_fresh_noise([update for _, update in readings])
        places = [place for place, _ in readings]
        return tuple(map(_row, self.times, places, updates))

    def _readings(self) -> list[_Reading]:
        self.scheduler, self.drawn, self.previous = copy.deepcopy(self.fresh), 0, (None, None)
        return [self._reading(k, time) for k, time in enumerate(self.times)]

    def _reading(self, k: int, time: Tensor) -> _Reading:
        before, first, previous = copy.deepcopy(self.scheduler), self.drawn, self.previous
        try:
            asked = copy.deepcopy(before)
            scale = input_scale(asked, time)
            alpha, sigma = level(asked, time, scale)
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(f"the noise level of its step {k} (time {float(time):g}) {_failed(error)}") from error
        vector = self._step(self.scheduler, k)
        if not bool(vector.isfinite().all()):
            raise UnreadableError(f"its own step {k} (time {float(time):g}) gives NaN or infinity")
        after = self.drawn, self.previous
        for size in (1.0, LARGE):
            self.drawn, self.previous = first, previous
            fed = self._step(copy.deepcopy(before) if size == 1.0 else before, k, size)
            expected = vector.clone()
            expected[[k, self.count + k]] *= size
            worst = float((fed - expected).abs().max() / (1 + expected.abs().max()))
            if size == 1.0 and worst > NEGLIGIBLE:
                raise UnreadableError(f"its step {k} draws random numbers that torch does not know of")
            if not worst < 1e-4:
                raise UnreadableError(f"row {k} is not linear in its inputs (relative departure {worst:.2g})")
        if abs(float(vector[-1])) > 1e-6:
            raise UnreadableError(f"row {k} adds the constant {float(vector[-1]):.3g}")
        self.drawn, self.previous = after
        update = StepCoefficients(
            vector[: self.count], vector[self.count : 2 * self.count], vector[2 * self.count : -1]
        )
        return {"alpha": alpha, "sigma": sigma, "input_scale": scale}, update

    def _unit(self, index: int, size: float) -> Tensor:
        unit = torch.zeros(1, 1, 1, 2 * self.count + self.room + 1, dtype=torch.float64)
        unit[..., index] = size
        return unit

    def _step(self, scheduler: Any, k: int, size: float = 1.0) -> Tensor:
        """Step k on its symbols, as one vector over all symbols."""
        output, state, time = self._unit(self.count + k, size), self._unit(k, size), self.times[k]
        given = (output, self.previous[1], time, self.previous[0], state) if self.looks_back else (output, time, state)
        further = dict(self.settings)
        if self.looks_ahead:  # as unCLIP's pipelines call it; no time for the last step
            further["prev_timestep"] = self.times[k + 1] if k + 1 < self.count else None
        draws = Draws(state.numel(), 2 * self.count + self.drawn, self.room - self.drawn)
        try:
            with draws, torch.no_grad():
                result = scheduler.step(*given, return_dict=False, **further)
        except UnreadableError:
            raise
        except Exception as error:
            reason = f"its step {k} (time {float(time):g}) {_failed(error)}"
            if self._asks_for_variance():
                reason = "the noise it adds depends on a variance that its network predicts"
            raise UnreadableError(reason) from error
        self.drawn += draws.count
        self.previous = time, result[1] if len(result) > 1 else None
        if result[0].numel() != state.numel():
            raise UnreadableError(f"its step {k} changes the shape of the state")
        return result[0].double().reshape(-1)

    def _asks_for_variance(self) -> bool:
        """Whether the first step takes an output of twice as many channels as the state has."""
        output, state = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1)
        try:
            with Draws(1, 0, 0), torch.no_grad():
                copy.deepcopy(self.fresh).step(output, self.times[0], state, return_dict=False)
        except Exception:  # it was something else
            return False
        return True


def _row(time: Tensor, place: Mapping[str, Any], update: StepCoefficients) -> Row:
    noise = float(update.draws.norm())
    return Row(
        time=float(time),
        network_time=float(time),
        **place,
        state=_nonzero(update.state),
        output=_nonzero(update.output),
        noise=noise if noise > NEGLIGIBLE else 0.0,
    )


def _check_taken(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    accepted = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in accepted.values()):
        return
    for name in settings:
        if name not in accepted:
            owner = type(getattr(function, "__self__", None)).__name__
            what = f"{owner}.{function.__name__} takes no argument {name!r}"
            raise PlanError(what, hint=nearest(name, accepted))


def _failed(error: Exception) -> str:
    return f"fails with {type(error).__name__}: {error}".rstrip(": ")


def _prepared(scheduler: Any, steps: int, settings: dict[str, Any]) -> Any:
    own_grid = any(settings.get(name) is not None for name in ("sigmas", "timesteps"))
    _check_taken(scheduler.set_timesteps, settings)

    def ready(count: int) -> Any:
        work = copy.deepcopy(scheduler)
        work.set_timesteps(**settings) if own_grid else work.set_timesteps(count, **settings)
        return work

    try:
        return ready(steps)
    except Exception as error:
        what = f"{type(scheduler).__name__}.set_timesteps refused {steps} steps: {error or type(error).__name__}"
        raise PlanError(what, hint=for_another_count(scheduler, steps, settings, ready)) from error


def _nonzero(vector: Tensor) -> dict[int, float]:
    return {j: float(c) for j, c in enumerate(vector.tolist()) if abs(c) > NEGLIGIBLE}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON part of a scheduler's configuration; an infinite setting (a clip that is off) becomes text."""
    kinds = (str, int, float, bool, type(None))
    plain = {k: v for k, v in config.items() if isinstance(v, kinds) and not k.startswith("_")}
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}
