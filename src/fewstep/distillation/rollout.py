"""Roll-outs: how the student makes the samples that it is judged on.

Calls before the last run without a gradient; the last one has it where gradients are enabled. Times live on the CPU,
so that choosing rows of a batch never waits for the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.distillation.core import Batch, Condition, Model, Networks, Samples, flow_step, noise_like, scales
from fewstep.distillation.steps import Steps
from fewstep.distillation.times import within
from fewstep.errors import FewstepError
from fewstep.process import Process


@dataclass(frozen=True)
class Simulation:
    """The student's own chain up to a random call: backward simulation (arXiv 2405.14867), trajectories of TDM.

    The student sees in training what it sees in sampling; `steps` says whether the noise between calls is fresh or
    implied (a deterministic chain).

    each:
        Draw the call of every sample for itself, rather than one for the batch.
    last:
        Always run to the last call.
    first:
        Draw among so many first calls alone.
    fixed:
        Use the first noise again between the calls instead of fresh noise.
    through:
        Back-propagate through all calls.
    """

    steps: Steps
    each: bool = False
    last: bool = False
    first: int | None = None
    fixed: bool = False
    through: bool = False

    def __call__(self, networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        """Samples from the drawn call."""
        within(networks.student.process, self.steps.times)
        index = _drawn(self.first or len(self.steps), batch.size, generator, self.each, self.last)
        return simulate(networks, batch, self.steps, index, generator, self.fixed, self.through)


def one_step(time: float) -> Simulation:
    """One call at a process time, from noise."""
    return Simulation(Steps((time,)))


@dataclass(frozen=True)
class RandomSchedule:
    """A chain of a random number of calls at random times, up to a random one (CDM, arXiv 2605.06376).

    The first call is at the noisiest time, the others are uniform below it and above `margin` of the range.
    """

    least: int = 1
    most: int = 28
    fresh: float = 0.0
    margin: float = 0.02

    def __call__(self, networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        """Samples from the drawn call."""
        top = networks.student.process.noisiest
        count = int(torch.randint(self.least, self.most + 1, (1,), generator=generator))
        inner = torch.rand(count - 1, generator=generator, dtype=torch.float64)
        falling = (self.margin + (1 - self.margin) * inner).sort(descending=True).values.unique().flip(0)
        steps = Steps((top, *(top * falling[falling < 1]).tolist()), self.fresh)
        return Simulation(steps)(networks, batch, generator)


@dataclass(frozen=True)
class NoisedData:
    """One call on real data noised to one of the student's times (LADD, arXiv 2403.12015).

    DMD2 without simulation: the student never sees its own earlier calls, which it does in sampling.
    """

    steps: Steps
    each: bool = True

    def __call__(self, networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        """Samples from noised data.

        Raises:
            FewstepError: the batch holds no data.
        """
        if batch.clean is None:
            raise FewstepError("this roll-out starts from real data", hint="Give the distillation data.")
        process = networks.student.process
        within(process, self.steps.times)
        index = _drawn(len(self.steps), batch.size, generator, self.each, False)
        time = _times(self.steps)[index]
        state = process.add_noise(batch.clean, noise_like(tuple(batch.clean.shape), generator, batch.clean), time)
        return last_call(networks.student, batch, self.steps, state, index)


def simulate(
    networks: Networks,
    batch: Batch,
    steps: Steps,
    index: Tensor,
    generator: torch.Generator,
    fixed: bool = False,
    through: bool = False,
) -> Samples:
    """The student's chain from noise up to call number `index` (B,) of each sample."""
    noise = noise_like((batch.size, *batch.shape), generator, _example(networks, batch))
    state = first_state(networks.student.process, steps.times[0], noise)
    begin = torch.zeros_like(index)
    with torch.set_grad_enabled(through and torch.is_grad_enabled()):
        state = walk(networks.student, batch, steps, state, begin, index, generator, noise if fixed else None)
    return last_call(networks.student, batch, steps, state, index)


def first_time(process: Process, sigma: float = 2.5, part: float = 0.625) -> float:
    """Where one-step students start: the noisiest time if it holds no data, else where the SiD family does.

    That is `sigma` where noise has no upper end (EDM), and this part of the range where the noisiest state still holds
    data that a noise prediction cannot read (625 of 1000 for Stable Diffusion).
    """
    alpha = process.alpha(process.noisiest)
    if alpha == 1:
        return process.time(-math.log(sigma))
    return process.noisiest if alpha < 1e-6 else part * process.noisiest


def first_state(process: Process, time: float, noise: Tensor) -> Tensor:
    """What a chain starts from: noise of the scale that data of unit variance has at `time`; sigma where alpha is 1."""
    alpha, sigma = process.alpha(time), process.sigma(time)
    return noise * (sigma if alpha == 1 else math.hypot(alpha, sigma))


def needed(samples: Samples | None) -> Samples:
    """What the student made, in float32 at least: differences of predictions lose their digits in half precision.

    Raises:
        FewstepError: there is none.
    """
    if samples is None:
        raise FewstepError("this objective judges samples of the student", hint="Give the method a roll-out.")
    width = torch.promote_types(samples.clean.dtype, torch.float32)
    return dataclasses.replace(samples, clean=samples.clean.to(width), state=samples.state.to(width))


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """The batch of these rows (b,) alone."""

    def part(condition: Condition | None) -> Condition | None:
        return None if condition is None else {name: value[rows] for name, value in condition.items()}

    return dataclasses.replace(
        batch,
        size=len(rows),
        clean=None if batch.clean is None else batch.clean[rows],
        condition=part(batch.condition),
        negative=part(batch.negative),
        path=None if batch.path is None else batch.path[rows],
    )


def rows_of_samples(samples: Samples, rows: Tensor) -> Samples:
    """These rows (b,) of what the student made."""
    return Samples(*(getattr(samples, f.name)[rows] for f in dataclasses.fields(samples)))


def between(low: float, high: float) -> Callable[[Samples], Tensor]:
    """Predicate (B,) of terms that are active only where the student's call was at a time in [low, high]."""
    return lambda samples: (samples.time >= low) & (samples.time <= high)


def walk(
    student: Model,
    batch: Batch,
    steps: Steps,
    state: Tensor,
    begin: Tensor,
    end: Tensor,
    generator: torch.Generator,
    fixed: Tensor | None,
) -> Tensor:
    """States of each sample at its call `end` (B,) from those at its call `begin`; calls only the rows that move."""
    for k in range(len(steps) - 1):
        moving = (begin <= k) & (k < end)
        noise = noise_between(steps, state, generator) if fixed is None or not steps.fresh else fixed
        if not bool(moving.any()):
            continue
        if bool(moving.all()):
            state = next_state(student, steps, k, state, _call(student, batch, steps, k, state), noise)
            continue
        rows = moving.nonzero().squeeze(1)
        part = state[rows]
        clean = _call(student, rows_of(batch, rows), steps, k, part)
        moved = next_state(student, steps, k, part, clean, None if noise is None else noise[rows])
        state = state.index_put((rows.to(state.device),), moved.to(state.dtype))
    return state


def _call(student: Model, batch: Batch, steps: Steps, k: int, state: Tensor) -> Tensor:
    time, jump = _full(batch.size, steps.times[k]), _full(batch.size, steps.jumps[k])
    return student.clean(state, time, batch.condition, jump)


def next_state(student: Model, steps: Steps, k: int, state: Tensor, clean: Tensor, noise: Tensor | None) -> Tensor:
    """States at the time of call k + 1: the jump of call k, then noise up to that time (None: the chain has none)."""
    process, size, jump = student.process, len(state), steps.jumps[k]
    start, end, to = (_full(size, value) for value in (steps.times[k], jump, steps.times[k + 1]))
    if noise is None:
        return flow_step(process, state, clean, start, to)
    if jump == 0:
        return process.add_noise(clean, noise, to)
    return raised(process, flow_step(process, state, clean, start, end), noise, end, to)


def raised(process: Process, state: Tensor, noise: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """States at noisier times `to` (B,) from states at `t` (B,) and unit noise: the forward kernel of the process."""
    (alpha_t, sigma_t), (alpha, sigma) = scales(process, t, state), scales(process, to, state)
    kept = alpha / alpha_t
    return kept * state + (sigma**2 - (kept * sigma_t) ** 2).clamp(min=0).sqrt() * noise


def last_call(student: Model, batch: Batch, steps: Steps, state: Tensor, index: Tensor) -> Samples:
    """What the student makes of states at its calls `index` (B,)."""
    times, jumps = _times(steps), torch.tensor(steps.jumps, dtype=torch.float64)
    time = times[index]
    until = torch.cat([times[1:], torch.zeros(1, dtype=torch.float64)])[index]
    clean = student.clean(state, time, batch.condition, jumps[index])
    return Samples(clean, state, time, until, index)


def _drawn(count: int, size: int, generator: torch.Generator, each: bool, last: bool) -> Tensor:
    if last:
        return torch.full((size,), count - 1)
    drawn = torch.randint(count, (size if each else 1,), generator=generator)
    return drawn if each else drawn.expand(size)


def noise_between(steps: Steps, state: Tensor, generator: torch.Generator) -> Tensor | None:
    """Fresh noise for states (B, ...), or None where the chain has none."""
    return noise_like(tuple(state.shape), generator, state) if steps.fresh else None


def _example(networks: Networks, batch: Batch) -> Tensor:
    """An empty tensor whose device and dtype the first noise takes: the data's, else float32 beside the student."""
    given = [value for value in (batch.clean, batch.path) if value is not None]
    if given:
        return given[0].new_empty(0)
    network = networks.student.network
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    nearby = [*(batch.condition or {}).values(), *weights]
    return torch.empty(0, device=nearby[0].device if nearby else None)


def _times(steps: Steps) -> Tensor:
    return torch.tensor(steps.times, dtype=torch.float64)


def _full(size: int, value: float) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)
