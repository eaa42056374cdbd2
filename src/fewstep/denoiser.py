"""The denoiser: network + process + prediction (+ guidance), what solvers, objectives and metrics call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.weights import base_name, fingerprint, fingerprint_of

__all__ = ["Backbone", "Denoiser", "Guided", "base_name", "fingerprint", "fingerprint_of"]

Condition = Mapping[str, Tensor]
"""Keyword arguments of a network, tensors of leading size B."""


@dataclass(frozen=True)
class Denoiser:
    """A network that knows its process and what its output means: the clean prediction at *process* times.

    What solvers, losses, metrics and diagnostics call. Executor and plans call `network` itself, at network times.

    Attributes:
        network: (scaled state (B, ...), network time () or (B,), **condition) -> raw output (B, ...); one with two
            times also takes `target_time`, the network time that its jump ends at.
        process: how its data were noised.
        prediction: what its output means.
        two_times: whether the network takes `target_time`; the others ignore it.
        calls: how many calls of a few-step student it tells apart by its argument `call` (B,), counted from 0; 0: it
            takes none.
        call: which call it is told (B,); see `following`.
    """

    network: Callable[..., Tensor]
    process: Process
    prediction: Prediction = field(default_factory=Prediction)
    two_times: bool = False
    calls: int = 0
    call: Tensor | None = None

    def __call__(
        self,
        x: Tensor,
        t: float | Tensor,
        condition: Condition | None = None,
        target_time: Tensor | None = None,
    ) -> Tensor:
        """The clean prediction x0 (B, ...).

        Args:
            x: states (B, ...).
            t: process times (B,), or one for all.
            condition: keyword arguments of the network.
            target_time: process times (B,) that the jumps of a network with two times end at; `t` unless given.
        """
        alpha, sigma = self._scales(t, x)
        p, m = self.prediction.sample(alpha, sigma)
        return p * x + m * self.raw(x, t, condition, target_time)

    def raw(
        self,
        x: Tensor,
        t: float | Tensor,
        condition: Condition | None = None,
        target_time: Tensor | None = None,
    ) -> Tensor:
        """The network's own output (B, ...) at process times; arguments as in `__call__`."""
        arguments: dict[str, Any] = dict(condition or {})
        if self.two_times:
            arguments["target_time"] = self._network_time(t if target_time is None else target_time, x)
        if self.calls:
            arguments["call"] = self._call_of(len(x))
        if self.prediction.kind == "edm":
            x = x * self.prediction.input_scale(*self._scales(t, x))
        return self.network(x, self._network_time(t, x), **arguments)

    def predict(self, x: Tensor, t: float | Tensor, kind: str, condition: Condition | None = None) -> Tensor:
        """The output re-expressed as another prediction (`epsilon`, `v_prediction`, ...), of the shape of `x`."""
        alpha, sigma = self._scales(t, x)
        target = Prediction(kind, self.prediction.sigma_data)
        return self.prediction.convert(self.raw(x, t, condition), x, alpha, sigma, target)

    def both(
        self, x: Tensor, t: Tensor, condition: Condition | None, negative: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """Clean predictions with the condition and with the negative one, both (B, ...), from one call of 2B.

        Raises:
            FewstepError: there is no negative condition.
        """
        if negative is None:
            raise FewstepError("guidance needs a negative condition", hint="Use guidance 1.")
        pair = {name: torch.cat([value, negative[name]]) for name, value in (condition or {}).items()}
        within, without = self(torch.cat([x, x]), torch.cat([t, t]), pair).chunk(2)
        return within, without

    def following(self, call: Tensor) -> Denoiser:
        """The denoiser told which call of the student (B,) its states come from; itself where it takes no call."""
        return replace(self, call=call) if self.calls else self

    def _call_of(self, size: int) -> Tensor:
        """The call of every sample; batches of several copies, such as guidance makes, repeat it.

        Raises:
            FewstepError: it is not known.
        """
        if self.call is None or size % max(1, len(self.call)):
            hint = "Ask through `Networks.following(samples.index)`, or set step_condition=False."
            raise FewstepError("this network must be told which call of the student it follows", hint=hint)
        return self.call.repeat(size // len(self.call))

    def _scales(self, t: float | Tensor, x: Tensor) -> tuple[Any, Any]:
        """alpha and sigma, ready to multiply x; of one time, as numbers of full precision."""
        if isinstance(t, Tensor):
            return self.process.scales(t, x)
        return self.process.alpha(t), self.process.sigma(t)

    def _network_time(self, t: float | Tensor, x: Tensor) -> Tensor:
        width = torch.promote_types(x.dtype, torch.float32)
        time = torch.as_tensor(t, dtype=torch.float64)
        return self.process.network_time(time).to(x.device, width)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598), n = n_u + scale (n_c - n_u); scale 1: conditional alone.

    Convention: `scale` is diffusers' `guidance_scale` (w + 1 in the paper). Conditions are keyword arguments of the
    network with tensors of leading size B; both branches run as one batch of 2B.

    Attributes:
        network: (x, time, **condition) -> raw output.
        condition: what to guide towards.
        negative: what to guide away from; the same names.
        scale: see above; a row of a plan may set another.
        weak: a worse network that gives n_u in place of `network` (autoguidance, arXiv 2406.02507), with the negative
            condition if there is one and else with the same.
        rescale: how much of the deviation of n_c the result is given back (arXiv 2305.08891, eq. 15-16), in [0, 1].
    """

    network: Callable[..., Tensor]
    condition: Mapping[str, Any]
    negative: Mapping[str, Any] | None = None
    scale: float = 1.0
    weak: Callable[..., Tensor] | None = None
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scale > 1 and self.negative is None and self.weak is None:
            raise FewstepError(
                "guidance needs the negative condition", value=self.scale, hint="Give `negative`, or scale=1."
            )
        if not 0 <= self.rescale <= 1:
            raise FewstepError("rescaling is a share", value=self.rescale, hint="Use 0 for none, 0.7 as published.")

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Guided raw output for states (B, ...) at network time, 0-dim or (B,)."""
        if self.scale == 1 or (self.negative is None and self.weak is None):
            return self.network(x, time, **self.condition)
        without, within = self._both(x, time)
        found = without + self.scale * (within - without)
        if not self.rescale:
            return found
        wanted, have = (n.flatten(1).std(1).reshape(-1, *[1] * (n.ndim - 1)) for n in (within, found))
        return found * (self.rescale * wanted / have + (1 - self.rescale))

    def _both(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        if self.weak is not None:
            worse = self.condition if self.negative is None else self.negative
            return self.weak(x, time, **worse), self.network(x, time, **self.condition)
        negative = self.negative or {}
        both = {name: _pair(negative[name], value) for name, value in self.condition.items()}
        times = torch.cat([time, time]) if time.ndim else time
        without, within = self.network(torch.cat([x, x]), times, **both).chunk(2)
        return without, within


class Backbone:
    """Any diffusers backbone (UNet or transformer) as `network(x, time, **conditions) -> raw output`.

    Reads the names of its first input and of its time argument from `forward`; a learned variance (twice as many output
    as input channels) is dropped. `time_scale` is what the pipeline multiplies times by (1/1000 for FLUX).
    """

    def __init__(self, model: nn.Module, time_scale: float = 1.0) -> None:
        # a wrapper such as `fewstep.pipelines.two_times.TwoTimes` passes on what it is given to the network inside
        parameters = inspect.signature(getattr(model, "inner", model).forward).parameters
        names = [n for n in ("sample", "hidden_states", "x") if n in parameters]
        times = [n for n in ("timestep", "timesteps", "t") if n in parameters]
        if not names or not times:
            raise FewstepError(
                f"{type(model).__name__}.forward has no known state and time arguments",
                value=list(parameters),
                hint="Wrap it in a function (x, time, **conditions) -> raw output.",
            )
        self.model, self.time_scale = model, time_scale
        self._state, self._time = names[0], times[0]

    def __call__(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        """Raw output (B, C, ...) in the dtype of the model."""
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        times = (time * self.time_scale).expand(len(x))
        arguments = {self._state: x.to(dtype), self._time: times, **conditions}
        raw = self.model(**arguments, return_dict=False)[0]
        return raw[:, : x.shape[1]] if x.ndim > 3 and raw.shape[1] == 2 * x.shape[1] else raw


def _pair(negative: Any, positive: Any) -> Any:
    if isinstance(positive, Tensor):
        return torch.cat([negative, positive])
    if isinstance(positive, Mapping):
        return {k: _pair(negative[k], v) for k, v in positive.items()}
    return positive
