"""The denoiser: network + process + prediction (+ guidance), what solvers, objectives and metrics call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.weights import base_name, fingerprint, fingerprint_of

__all__ = ["Backbone", "Denoiser", "Guided", "base_name", "fingerprint", "fingerprint_of"]


@dataclass(frozen=True)
class Denoiser:
    """A raw network that knows its process and what its output means.

    network: (input (B, ...), network time, 0-dim or (B,)) -> raw output (B, ...).
    """

    network: Callable[[Tensor, Tensor], Tensor]
    process: Process
    prediction: Prediction = field(default_factory=Prediction)

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Raw output at network time `time`: what plans and the executor use."""
        return self.network(x, time)

    def raw(self, x: Tensor, t: float) -> Tensor:
        """Raw output at process time `t` for states (B, ...), input scaling included."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        width = torch.promote_types(x.dtype, torch.float32)
        time = torch.tensor(self.process.network_time(t), device=x.device, dtype=width)
        return self.network(x * self.prediction.input_scale(alpha, sigma), time)

    def predict(self, x: Tensor, t: float, kind: str = "sample") -> Tensor:
        """The output re-expressed as another prediction (data by default) at process time `t`; shape of `x`."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        target = Prediction(kind, self.prediction.sigma_data)
        return self.prediction.convert(self.raw(x, t), x, alpha, sigma, target)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598), n = n_u + scale (n_c - n_u); scale 1: conditional alone.

    Convention: `scale` is diffusers' `guidance_scale` (w + 1 in the paper). Conditions are keyword arguments of the
    network with tensors of leading size B; both branches run as one batch of 2B.
    """

    network: Callable[..., Tensor]
    condition: Mapping[str, Any]
    negative: Mapping[str, Any] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale > 1 and self.negative is None:
            raise FewstepError(
                "guidance needs the negative condition", value=self.scale, hint="Give `negative`, or scale=1."
            )

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Guided raw output for states (B, ...) at network time, 0-dim or (B,)."""
        if self.scale <= 1 or self.negative is None:
            return self.network(x, time, **self.condition)
        both = {name: _pair(self.negative[name], value) for name, value in self.condition.items()}
        times = torch.cat([time, time]) if time.ndim else time
        without, within = self.network(torch.cat([x, x]), times, **both).chunk(2)
        return without + self.scale * (within - without)


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
