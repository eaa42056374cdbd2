"""Roll-outs: how the student makes the samples that its losses see.

Calls before the last run without a gradient; the last one has it where gradients are enabled. Times live on the CPU,
so that choosing rows of a batch never waits for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks, Rollout, Samples
from fewstep.distillation.part import part
from fewstep.distillation.times import within
from fewstep.errors import FewstepError
from fewstep.transition import first_state, noise_like


@part
def backward_simulation(
    chain: Chain,
    each: bool = False,
    last: bool = False,
    first: int | None = None,
    fixed: bool = False,
    through: bool | int = False,
) -> Rollout:
    """The student's own chain up to a random call: backward simulation (arXiv 2405.14867), trajectories of TDM.

    The student sees in training what it sees in sampling; `chain` says whether the noise between calls is fresh or
    implied (a deterministic chain).

    Args:
        chain: the calls of the student.
        each: draw the call of every sample for itself, rather than one for the batch.
        last: always run to the last call.
        first: draw among so many first calls alone.
        fixed: use the first noise again between the calls instead of fresh noise.
        through: back-propagate through so many calls before the last too (DRaFT-K: K - 1); True: through all.
    """

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        within(networks.student.process, chain.times)
        index = _drawn(first or len(chain), batch.size, generator, each, last)
        noise = unit_noise(networks, batch, generator)
        return chain.roll_out(networks.student, batch, noise, index, generator, fixed=fixed, through=through)

    return roll


def one_step(time: float) -> Rollout:
    """One call at a process time, from noise."""
    return backward_simulation(Chain((time,)))


@part
def random_schedule(least: int = 1, most: int = 28, fresh: float = 0.0, margin: float = 0.02) -> Rollout:
    """A chain of a random number of calls at random times, up to a random one (CDM, arXiv 2605.06376).

    The first call is at the noisiest time, the others are uniform below it and above `margin` of the range.
    """

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        top = networks.student.process.noisiest
        count = int(torch.randint(least, most + 1, (1,), generator=generator))
        inner = torch.rand(count - 1, generator=generator, dtype=torch.float64)
        falling = (margin + (1 - margin) * inner).sort(descending=True).values.unique().flip(0)
        chain = Chain((top, *(top * falling[falling < 1]).tolist()), fresh)
        return backward_simulation(chain)(networks, batch, generator)

    return roll


@part
def noised_data_rollout(chain: Chain, each: bool = True) -> Rollout:
    """One call on real data noised to one of the student's times (LADD, arXiv 2403.12015).

    DMD2 without simulation: the student never sees its own earlier calls, which it does in sampling.

    Args:
        chain: the calls of the student.
        each: draw the call of every sample for itself, rather than one for the batch.

    Raises:
        FewstepError: when called: the batch holds no data.
    """

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        if batch.clean is None:
            raise FewstepError("this roll-out starts from real data", hint="Give the distillation data.")
        process = networks.student.process
        within(process, chain.times)
        index = _drawn(len(chain), batch.size, generator, each, False)
        time = torch.tensor(chain.times, dtype=torch.float64)[index]
        state = process.add_noise(batch.clean, noise_like(tuple(batch.clean.shape), generator, batch.clean), time)
        return chain.call(networks.student, batch, state, index)

    return roll


@part
def condition_rollout(time: float, name: str | None) -> Rollout:
    """One call at a process time from a condition itself, without noise (OSEDiff, arXiv 2406.08177).

    Args:
        time: of the call.
        name: of the condition that holds the first state (B, ...); None: zeros.

    Raises:
        FewstepError: when called: the batch has no such condition.
    """
    chain = Chain((time,))

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        within(networks.student.process, chain.times)
        if name is not None and name not in (batch.condition or {}):
            hint = "Give the degraded pictures, at the size of the samples, as a condition of that name."
            raise FewstepError(f"this method starts from the condition {name!r}", hint=hint)
        state = 0 * unit_noise(networks, batch, generator) if name is None else (batch.condition or {})[name]
        return chain.call(networks.student, batch, state, torch.zeros(batch.size, dtype=torch.long))

    return roll


@part
def two_calls(chain: Chain, fixed: bool | None = None) -> Rollout:
    """The chain's first call, then one at a random later time of it, with gradients through both (arXiv 2510.14978).

        x = G(e, t_0);  x_t = alpha_t x + sigma_t e;  clean = G(x_t, t)

    What a judge of clean samples needs, who can say nothing of early calls: the second call is nearly as good as the
    whole chain, at two graphs. A chain of one call is that call.

    Args:
        chain: the calls of the student.
        fixed: whether the second noise is the first; as the chain samples unless given (`Chain.fresh` 0: it is).
    """
    same = chain.fresh == 0 if fixed is None else fixed

    def roll(networks: Networks, batch: Batch, generator: torch.Generator) -> Samples:
        student = networks.student
        within(student.process, chain.times)
        noise, first = unit_noise(networks, batch, generator), torch.zeros(batch.size, dtype=torch.long)
        made = chain.call(student, batch, first_state(student.process, chain.times[0], noise), first)
        if len(chain) == 1:
            return made
        index = torch.randint(1, len(chain), (batch.size,), generator=generator)
        again = noise if same else noise_like(tuple(noise.shape), generator, noise)
        time = torch.tensor(chain.times, dtype=torch.float64)[index]
        return chain.call(student, batch, student.process.add_noise(made.clean, again, time), index)

    return roll


def needed(samples: Samples | None) -> Samples:
    """The student's samples, in float32 at least: differences of predictions lose their digits in half precision.

    Raises:
        FewstepError: there is none.
    """
    if samples is None:
        raise FewstepError("this objective needs samples of the student", hint="Give the method a roll-out.")
    width = torch.promote_types(samples.clean.dtype, torch.float32)
    return dataclasses.replace(samples, clean=samples.clean.to(width), state=samples.state.to(width))


@part
def between(low: float, high: float) -> Callable[[Samples], Tensor]:
    """Predicate (B,) of terms that are active only where the student's call was at a time in [low, high]."""
    return lambda samples: (samples.time >= low) & (samples.time <= high)


def _drawn(count: int, size: int, generator: torch.Generator, each: bool, last: bool) -> Tensor:
    if last:
        return torch.full((size,), count - 1)
    drawn = torch.randint(count, (size if each else 1,), generator=generator)
    return drawn if each else drawn.expand(size)


def unit_noise(networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
    """Standard normal noise (B, ...) for a batch, like its data or trajectories, else in float32 beside the student."""
    given = [value for value in (batch.clean, batch.path) if value is not None]
    if given:
        return noise_like((batch.size, *batch.shape), generator, given[0])
    network = networks.student.network
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    nearby = next(iter((*(batch.condition or {}).values(), *weights)), None)
    like = None if nearby is None else torch.empty(0, device=nearby.device)
    return noise_like((batch.size, *batch.shape), generator, like)
