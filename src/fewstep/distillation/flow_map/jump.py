"""One jump of a flow map for every sample of a batch: where it starts, where it should land, who may be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import BoundaryScaling, JumpCoefficients, column
from fewstep.errors import FewstepError

PRIVATE = "teacher."
"""Conditions whose name begins so are given to the teacher alone, under the rest of their name."""


@dataclass(frozen=True)
class JumpTimes:
    """Times (B,) of jumps, float64 on the CPU: start t >= middle m >= end s.

    Attributes:
        t: starts.
        s: ends.
        m: middles; None for targets of one leg.
        start: positions of t in `Batch.times`, for jumps between stored states.
        stop: those of s.
    """

    t: Tensor
    s: Tensor
    m: Tensor | None = None
    start: Tensor | None = None
    stop: Tensor | None = None


@dataclass(frozen=True)
class JumpStates:
    """The states that jumps start at, and what the source knows beside.

    Attributes:
        x: the states (B, ...).
        clean: with `noise` the pair that the state was mixed from.
        noise: see `clean`.
        arrival: the state on the same trajectory at the end of the jump.
    """

    x: Tensor
    clean: Tensor | None = None
    noise: Tensor | None = None
    arrival: Tensor | None = None


@dataclass(frozen=True)
class Jump:
    """Everything a target may use; nothing in it carries a gradient.

    Attributes:
        states: where the jumps start.
        times: of the jumps.
        frame: coefficients of the jump from t to s.
        condition: of the student.
        teacher_condition: of the teacher.
        negative: no condition, for guidance.
        scale: guidance scale (B,) of the teacher; None for 1.
        seed: of the dropout masks: every evaluation of a student within one residual sees the same ones.
        step: which step of the training this is.
        steps: of how many.
        boundary: how a prediction becomes the end state; the step with it held fixed unless given.
    """

    states: JumpStates
    times: JumpTimes
    frame: JumpCoefficients
    condition: Condition | None = None
    teacher_condition: Condition | None = None
    negative: Condition | None = None
    scale: Tensor | None = None
    seed: int = 0
    step: int = 0
    steps: int = 1
    boundary: BoundaryScaling | None = None

    @property
    def x(self) -> Tensor:
        """States (B, ...) at the start."""
        return self.states.x

    @property
    def t(self) -> Tensor:
        """Start times (B,)."""
        return self.times.t

    @property
    def s(self) -> Tensor:
        """End times (B,)."""
        return self.times.s

    def known(self, name: str) -> Tensor:
        """What the source knows.

        Raises:
            FewstepError: this source does not.
        """
        value: Tensor | None = getattr(self.states, name)
        if value is None:
            hint = "`clean` and `noise` come with noised data and end-point pairs, `arrival` with stored trajectories."
            raise FewstepError(f"this target needs the {name} of its source", hint=hint)
        return value

    def ask(self, model: Denoiser, x: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """Clean prediction (B, ...) of a student for jumps from t to `to`, with this jump's dropout masks."""
        with same_randomness(self.seed, x.device):
            return model(x, t, self.condition, to)

    def teach(self, model: Denoiser, x: Tensor, t: Tensor) -> tuple[Tensor, int]:
        """Guided clean prediction (B, ...) of a teacher at times (B,), and the forward passes that it took."""
        given, nothing = self.teacher_condition, self.negative
        if self.scale is None or given is None:
            return model(x, t, given), 1
        within, without = model.both(x, t, given, nothing)
        return without + column(self.scale, x) * (within - without), 2

    def land(self, model: Denoiser, x: Tensor, clean: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """States (B, ...) at `to` of a student's prediction at (x, t)."""
        return JumpCoefficients.of(model.process, t, to, self.boundary).express(clean, x, "state")


@contextmanager
def same_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers inside (dropout) depend on the seed alone; those outside do not notice."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # the generators themselves: torch.manual_seed walks the stack for every backend, at a millisecond a call
        torch.random.default_generator.manual_seed(seed)
        if on_gpu:
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def member(networks: Networks, name: str) -> Denoiser:
    """`student`, `teacher` or `target`; the target of a method without one is the live student."""
    model: Denoiser = networks.student if name == "target" and networks.target is None else networks.need(name)
    return model


def students_view(condition: Condition | None) -> Condition | None:
    """The conditions that the student is given."""
    return None if condition is None else {k: v for k, v in condition.items() if not k.startswith(PRIVATE)}


def teachers_view(condition: Condition | None) -> Condition | None:
    """The conditions that the teacher is given: the common ones, replaced and joined by its private ones."""
    if condition is None:
        return None
    own: Mapping[str, Tensor] = {k[len(PRIVATE) :]: v for k, v in condition.items() if k.startswith(PRIVATE)}
    return {**{k: v for k, v in condition.items() if not k.startswith(PRIVATE)}, **own}
