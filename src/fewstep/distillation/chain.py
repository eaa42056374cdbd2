"""How a few-step student is run: the times of its calls and the noise between them. One object with three uses:

    chain.plan(process, prediction)          the sampler that the finished student is saved with
    chain.roll_out(student, batch, ...)      its samples while it is trained, up to any of its calls
    chain.finish(student, batch, samples)    the rest of the chain after a roll-out

    chain.transition(process, k, state, ...) the law of its step number k: what is drawn from, and its density

Every step is a transition of `fewstep.transition`. Times live on the CPU, so that choosing rows of a batch never
waits for the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.core import Batch, Samples
from fewstep.distillation.part import part
from fewstep.errors import FewstepError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers import grids
from fewstep.solvers.stages import Stages, Update, plain
from fewstep.transition import (
    Transition,
    ancestral_std,
    eta_std,
    first_state,
    flow_sde_transition,
    noise_like,
    transition,
)

StepLaw = Callable[[Process, Tensor, Tensor, Tensor, Tensor], Transition]
"""(process, states (B, ...), clean predictions (B, ...), times (B,), next times (B,)) -> the law of the next states,
whose mean is linear in states and predictions."""


@part
def eta_steps(eta: float) -> StepLaw:
    """Steps that keep the process's marginals, with noise sigma_s sin(eta pi / 2): 1 noises the prediction anew.

    Raises:
        FewstepError: eta outside of (0, 1].
    """
    if not 0 < eta <= 1:
        hint = "0.3 keeps most of the path, 1 noises anew; the deterministic chain is Chain(times, fresh=0)."
        raise FewstepError("eta must lie above 0 and not above 1", value=eta, hint=hint)
    return lambda process, x, clean, t, s: transition(process, x, clean, t, s, eta_std(process, s, eta))


@part
def ancestral_steps() -> StepLaw:
    """Euler-ancestral steps, those of the Turbo models (see `fewstep.transition.ancestral_std`)."""
    return lambda process, x, clean, t, s: transition(process, x, clean, t, s, ancestral_std(process, t, s))


@part
def flow_sde_steps(eta: float = 0.7) -> StepLaw:
    """Steps of a flow's reverse SDE, as Flow-GRPO explores with (arXiv 2505.05470).

    Raises:
        FewstepError: eta is not positive; when used: the process is no flow.
    """
    if eta <= 0:
        raise FewstepError("eta must be positive", value=eta, hint="0.7; without noise there is nothing to explore.")
    return lambda process, x, clean, t, s: flow_sde_transition(process, x, clean, t, s, eta)


@dataclass(frozen=True)
class Chain:
    """The calls of a student.

    Attributes:
        times: process times of the calls, noisiest first.
        fresh: the gamma of arXiv 2402.19159: from each call the student jumps to (1 - fresh) times the next time, and
            new noise takes it back up. 0 is a deterministic chain, 1 jumps to the data and noises anew.
        law: another law of the steps; the network then always predicts the data, as with `fresh` 1.

    Raises:
        FewstepError: no times, times that do not fall, `fresh` outside of [0, 1], or both it and a law.
    """

    times: tuple[float, ...]
    fresh: float = 1.0
    law: StepLaw | None = None

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in itertools.pairwise(self.times))
        if not self.times or not falling or self.times[-1] <= 0:
            raise FewstepError("the times of a student must fall and stay above 0", value=self.times)
        if not 0 <= self.fresh <= 1:
            raise FewstepError("fresh must lie between 0 and 1", value=self.fresh, hint="0: chain, 1: noise anew.")
        if self.law is not None and self.fresh != 1:
            raise FewstepError("a chain has `fresh` or a law of its steps", value=self.fresh, hint="Leave one out.")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def jumps(self) -> tuple[float, ...]:
        """Where each call's jump ends; 0, the data, for the last."""
        return (*((1 - self.fresh) * t for t in self.times[1:]), 0.0)

    @property
    def stochastic(self) -> bool:
        """Whether fresh noise enters between the calls."""
        return len(self) > 1 and (self.law is not None or self.fresh > 0)

    def noise_stds(self, process: Process) -> tuple[float, ...]:
        """Standard deviation of the fresh noise after each call but the last, in states at the next time."""
        zero = torch.zeros(1, 1, dtype=torch.float64)
        return tuple(float(self.transition(process, k, zero, zero).std) for k in range(len(self) - 1))

    def transition(self, process: Process, k: int, state: Tensor, clean: Tensor) -> Transition:
        """The law of the states at call k + 1, given those at call k and their clean predictions, both (B, ...)."""
        t, s = (_full(len(state), self.times[i]) for i in (k, k + 1))
        if self.law is not None:
            return self.law(process, state, clean, t, s)
        std = _fresh_noise(process, self.jumps[k], self.times[k + 1])  # of this step alone: it runs in every roll-out
        return transition(process, state, clean, t, s, _full(len(state), std))

    def plan(self, process: Process, prediction: Prediction) -> Plan:
        """The plan that runs the student in any pipeline; carries no guidance, which is inside the student."""
        s = Stages(process, prediction, grids.given(self.times))
        updates: list[Update] = []
        zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        for k in range(len(self) - 1):
            law = self.transition(process, k, one, zero)  # the mean is linear: two probes tell its coefficients
            of_state, of_clean = law.mean, self.transition(process, k, zero, one).mean
            data = plain((of_state * s.alpha[k] + of_clean).squeeze()) * s.data(k)
            renoised = bool(of_state == 0)
            update = data if renoised else data + plain((of_state * s.sigma[k]).squeeze()) * s.noise(k)
            updates.append((update, plain(law.std.squeeze())))
        updates.append((s.data(len(self) - 1), 0.0))
        return s.plan(updates, "student", fresh=self.fresh, jumps=list(self.jumps))

    def sample(
        self, student: Denoiser, noise: Tensor, condition: Condition | None, generator: torch.Generator
    ) -> Tensor:
        """Samples (B, ...) from unit noise (B, ...); fresh noise comes from the CPU generator."""
        batch = Batch(len(noise), tuple(noise.shape[1:]), condition=condition)
        last = torch.full((len(noise),), len(self) - 1)
        return self.roll_out(student, batch, noise, last, generator, through=True).clean

    def roll_out(
        self,
        student: Denoiser,
        batch: Batch,
        noise: Tensor,
        index: Tensor,
        generator: torch.Generator,
        *,
        fixed: bool = False,
        through: bool | int = False,
    ) -> Samples:
        """The student's prediction in call number `index` (B,) of each sample, from unit noise (B, ...).

        Args:
            student: the student.
            batch: its conditions.
            noise: unit noise (B, ...) of the first states.
            index: numbers of the calls (B,), 0 for the noisiest.
            generator: of the fresh noise between calls, on the CPU.
            fixed: use the first noise again instead of fresh noise.
            through: how many calls before the last carry gradients too (where they are enabled); True: all.
        """
        state, same = first_state(student.process, self.times[0], noise), noise if fixed and self.fresh else None
        first = 0 * index if through is True else (index - int(through)).clamp(min=0)
        if through is False or bool(first.any()):
            end = index if through is False else first
            with torch.no_grad():
                state = self._walk(student, batch, state, 0 * index, end, generator, same)
        if through is not False:
            state = self._walk(student, batch, state, first, index, generator, same)
        return self.call(student, batch, state, index)

    @torch.no_grad()
    def finish(self, student: Denoiser, batch: Batch, samples: Samples, generator: torch.Generator) -> Tensor:
        """Clean samples (B, ...) from the rest of the chain after a roll-out, without a gradient."""
        last = len(self) - 1
        clean, going = samples.clean.detach(), samples.index < last
        if not bool(going.any()):
            return clean
        rows = going.nonzero().squeeze(1)
        part, left, begin = batch.rows(rows), samples.rows(rows), samples.index[rows]
        state = torch.empty_like(left.state)
        for k in range(last):
            here = (begin == k).nonzero().squeeze(1)
            if len(here):
                noise = self._noise(left.state[here], generator)
                state[here] = self._step(student.process, k, left.state[here], left.clean[here], noise)
        end = torch.full_like(begin, last)
        state = self._walk(student, part, state, begin + 1, end, generator)
        finished = self.call(student, part, state, end).clean
        return clean.index_put((rows.to(clean.device),), finished.to(clean.dtype))

    def call(self, student: Denoiser, batch: Batch, state: Tensor, index: Tensor) -> Samples:
        """The student's prediction at states (B, ...) in its calls `index` (B,)."""
        times, jumps = (torch.tensor(values, dtype=torch.float64) for values in (self.times, self.jumps))
        next_time = torch.cat([times[1:], torch.zeros(1, dtype=torch.float64)])[index]
        clean = student(state, times[index], batch.condition, jumps[index])
        return Samples(clean, state, times[index], next_time, index)

    def _walk(
        self,
        student: Denoiser,
        batch: Batch,
        state: Tensor,
        begin: Tensor,
        end: Tensor,
        generator: torch.Generator,
        fixed: Tensor | None = None,
    ) -> Tensor:
        """States at each sample's call `end` (B,) from those at its call `begin`; calls only the rows that move."""
        for k in range(len(self) - 1):
            noise = self._noise(state, generator) if fixed is None else fixed
            rows = ((begin <= k) & (k < end)).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            if len(rows) == len(state):
                state = self._next(student, batch, k, state, noise)
                continue
            part = None if noise is None else noise[rows]
            moved = self._next(student, batch.rows(rows), k, state[rows], part)
            state = state.index_put((rows.to(state.device),), moved.to(state.dtype))
        return state

    def _next(self, student: Denoiser, batch: Batch, k: int, state: Tensor, noise: Tensor | None) -> Tensor:
        """States at call k + 1 from states at call k."""
        clean = self.call(student, batch, state, torch.full((len(state),), k)).clean
        return self._step(student.process, k, state, clean, noise)

    def _step(self, process: Process, k: int, state: Tensor, clean: Tensor, noise: Tensor | None) -> Tensor:
        """States at the time of call k + 1 from those of call k, their clean predictions, and unit noise."""
        law = self.transition(process, k, state, clean)
        return law.mean if noise is None else law.draw(noise)

    def _noise(self, state: Tensor, generator: torch.Generator) -> Tensor | None:
        """Fresh noise for states (B, ...); None where the chain has none."""
        return noise_like(tuple(state.shape), generator, state) if self.stochastic else None


def evenly(process: Process, steps: int, fresh: float = 1.0) -> Chain:
    """Equal parts of the time axis from the noisiest time on (999, 749.25, 499.5, 249.75 of 1000 discrete times).

    On a process whose noise has no upper end (VE), equal parts of sigma^(1/7) as in arXiv 2206.00364.
    """
    if process.alpha(process.noisiest) == 1.0:
        least = 0.002 if steps > 1 else process.noisiest
        times = grids.karras(process, steps + 1, least).times[:-1] if steps > 1 else [process.noisiest]
    else:
        times = grids.uniform(process, steps).times
    return Chain(tuple(float(t) for t in times), fresh)


def one_step_time(process: Process, sigma: float = 2.5, part: float = 0.625) -> float:
    """Where one-step students start: the noisiest time if it holds no data, else where the SiD family does.

    That is `sigma` where noise has no upper end (EDM), and this part of the range where the noisiest state still holds
    data that a noise prediction cannot read (625 of 1000 for Stable Diffusion).
    """
    alpha = process.alpha(process.noisiest)
    if alpha == 1:
        return process.time(-math.log(sigma))
    return process.noisiest if alpha < 1e-6 else part * process.noisiest


def _fresh_noise(process: Process, jump: float, t: float) -> float:
    """Deviation of the noise that takes a state from time `jump` up to t.

    Time 0 stands for the data itself, also where the process keeps some noise there.
    """
    if jump == 0:
        return process.sigma(t)
    kept = process.alpha(t) / process.alpha(jump) * process.sigma(jump)
    return math.sqrt(max(0.0, process.sigma(t) ** 2 - kept**2))


def _full(size: int, value: float) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)
