"""What every objective is made of: models at times of shape (B,), who takes part, and what a term of a loss is.

Nothing here trains. A term is a stateless function from the cast, a batch and the student's own samples to a loss; the
trainer owns modules, optimizers and the order of updates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Process

Condition = Mapping[str, Tensor]
"""Keyword arguments of a network, tensors of leading size B."""


def scales(process: Process, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at times (B,), in the dtype of `like` and shaped to multiply it."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    alpha, sigma = process.alpha(t.double()), process.sigma(t.double())
    return alpha.to(like).reshape(shape), sigma.to(like).reshape(shape)


def flow_step(process: Process, x: Tensor, clean: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """States at times `to` (B,) from states at `t` (B,) with the clean prediction held fixed (a DDIM step).

    x_s = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) D: exact where D does not change on the way.
    """
    alpha_t, sigma_t = scales(process, t, x)
    alpha_s, sigma_s = scales(process, to, x)
    ratio = sigma_s / sigma_t
    return ratio * x + (alpha_s - alpha_t * ratio) * clean


def flow_path(
    process: Process, clean: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor
) -> Iterator[Tensor]:
    """States (B, ...) at times (K,), from x at the first of them, by Euler's steps along clean(states, times (B,))."""
    yield x
    for t, to in itertools.pairwise(times.unbind()):
        start, end = t.expand(len(x)), to.expand(len(x))
        x = flow_step(process, x, clean(x, start), start, end)
        yield x


@dataclass(frozen=True)
class Model:
    """A network read as a denoiser at process times of shape (B,).

    network:
        (input (B, ...), network time (B,), **condition) -> raw output (B, ...); one with two times also takes the
        network time `target_time` (B,) that its flow map ends at.
    two_times:
        Whether the network takes `target_time`; the others ignore the end of a flow map.
    calls:
        How many calls of the student it tells apart by its argument `call` (B,), counted from 0; 0: it takes none.
    call:
        What it is told, (B,); see `following`.
    """

    network: Callable[..., Tensor]
    process: Process
    prediction: Prediction = field(default_factory=Prediction)
    two_times: bool = False
    calls: int = 0
    call: Tensor | None = None

    def following(self, call: Tensor) -> Model:
        """The model told which call of the student (B,) its states come from; itself where it takes no call."""
        return replace(self, call=call) if self.calls else self

    def raw(self, x: Tensor, t: Tensor, condition: Condition | None = None, to: Tensor | None = None) -> Tensor:
        """Raw output for states (B, ...) at times (B,)."""
        more: dict[str, Any] = dict(condition or {})
        if self.two_times:
            more["target_time"] = self._told(t if to is None else to, x)
        if self.calls:
            more["call"] = self._of_call(len(x))
        scaled = x
        if self.prediction.kind == "edm":
            scaled = x * self.prediction.input_scale(*scales(self.process, t, x))
        return self.network(scaled, self._told(t, x), **more)

    def clean(self, x: Tensor, t: Tensor, condition: Condition | None = None, to: Tensor | None = None) -> Tensor:
        """Clean prediction x0 (B, ...) for states at times (B,)."""
        alpha, sigma = scales(self.process, t, x)
        p, m = self.prediction.sample(alpha, sigma)
        return p * x + m * self.raw(x, t, condition, to)

    def guided(
        self, x: Tensor, t: Tensor, condition: Condition | None, negative: Condition | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Clean predictions with the condition and without it, both (B, ...), from one call of 2B.

        Raises:
            FewstepError: there is no negative condition.
        """
        if negative is None:
            raise FewstepError("guidance needs a negative condition", value=scale, hint="Use guidance 1.")
        both = {name: torch.cat([value, negative[name]]) for name, value in (condition or {}).items()}
        within, without = self.clean(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return within, without

    def _of_call(self, size: int) -> Tensor:
        """The call of every sample; batches of several copies, such as guidance makes, repeat it.

        Raises:
            FewstepError: it is not known.
        """
        if self.call is None or size % max(1, len(self.call)):
            hint = "Ask through `Cast.following(made.index)`, or set step_condition=False."
            raise FewstepError("this network must be told which call of the student it follows", hint=hint)
        return self.call.repeat(size // len(self.call))

    def _told(self, t: Tensor, x: Tensor) -> Tensor:
        width = torch.promote_types(x.dtype, torch.float32)
        return self.process.network_time(t.double()).to(x.device, width)


@dataclass(frozen=True)
class Networks:
    """The networks of a distillation; only the terms that need one ask for it."""

    student: Model
    teacher: Model
    critic: Model | None = None
    target: Model | None = None
    adversary: nn.Module | None = None

    def following(self, call: Tensor) -> Networks:
        """The cast whose critic is told which call of the student (B,) its states come from."""
        return self if self.critic is None else replace(self, critic=self.critic.following(call))

    def need(self, name: str) -> Any:
        """A member, or a clear error.

        Raises:
            FewstepError: it is absent.
        """
        member = getattr(self, name)
        if member is None:
            raise FewstepError(f"this objective needs a {name}", hint=f"Give the distillation a {name}.")
        return member


@dataclass(frozen=True)
class Batch:
    """What one step is given.

    clean:
        Real data (B, ...), or its latents; None for methods that need no data.
    condition, negative:
        Keyword arguments of the networks, and those of no condition (for guidance).
    path, times:
        States (B, K, ...) of the teacher on the way from noise to data and their process times (K,), noisiest first,
        from a trajectory store.
    size, shape:
        Number of samples and the shape of one.
    step, steps:
        Which step of how many this is: for schedules (warm-ups, shrinking intervals).
    """

    size: int
    shape: tuple[int, ...]
    clean: Tensor | None = None
    condition: Condition | None = None
    negative: Condition | None = None
    path: Tensor | None = None
    times: Tensor | None = None
    step: int = 0
    steps: int = 1

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.step / max(1, self.steps)


@dataclass(frozen=True)
class Samples:
    """Samples of the student, from a roll-out.

    clean:
        The student's clean prediction (B, ...); carries its gradient where the caller asked for one.
    state, time:
        What the student saw in its last call (B, ...), and when (B,).
    until:
        Time (B,) of the next call, 0 after the last.
    index:
        Which of the student's calls it was (B,), 0 for the noisiest.
    """

    clean: Tensor
    state: Tensor
    time: Tensor
    until: Tensor
    index: Tensor


Loss = tuple[Tensor, dict[str, Tensor]]
"""A scalar with its gradient, and detached scalars to log."""


class Term(Protocol):
    """One summand of a network's loss; draws all its randomness from the generator (on the CPU)."""

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """The loss; `made` is what the roll-out of this step made, None for methods without one."""


class Rollout(Protocol):
    """How the student makes the samples that it is judged on; gradients flow if they are enabled around it."""

    def __call__(self, networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        """Samples for the conditions of a batch."""


def noise_like(shape: tuple[int, ...], generator: torch.Generator, like: Tensor | None = None) -> Tensor:
    """Standard normal noise from a CPU generator, on the device and in the dtype of `like`."""
    noise = torch.randn(shape, generator=generator)
    return noise if like is None else noise.to(like)
