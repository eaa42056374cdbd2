"""Running plans of plans: one part after the other, in constant memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.executor import Network, Noise, generator_of, sample
from fewstep.plan.nested import NestedPlan, PlanEntry
from fewstep.process import Process

Bind = Callable[[int, Tensor | None], Network | Mapping[str, Network]]
"""(value k of the outer index, what part k is shown of the parts before it (B, ...) or None) -> the network of part k.
Called once per part, in order: a network with a cache takes the part before into it here."""


def sample_nested(
    plan: NestedPlan,
    network: Bind,
    *,
    seeds: Sequence[int],
    shape: Sequence[int] | Callable[[int], Sequence[int]],
    axis: int = 0,
    first: int = 0,
    count: int | None = None,
    context: Tensor | None = None,
    process: Process | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Run a plan of plans; yields the samples (B, *shape) of each part as soon as they are there.

    Nothing is kept but what later parts are shown: memory does not grow with the number of parts. Part 0 draws from the
    seeds themselves, so that one part is what `sample` gives; part k draws from streams of (seed, k), so that a run can
    begin at any part.

    Args:
        plan: what every part is sampled with.
        network: see `Bind`.
        seeds: one per sample.
        shape: of one sample of a part, or a function of k; its size along `axis` gives way to the `length` of an entry.
        axis: of one sample, along which parts follow each other.
        first: value of the index to begin with.
        count: how many parts; unless given, all entries, or for ever where the plan is endless.
        context: samples before the first part (B, ...): its given beginning, or what an earlier run ended with.
        process: of the network; needed where the plan noises what is shown.

    Raises:
        PlanError: the plan has no such parts.
        FewstepError: a seed that is no whole number, or noise of the context without a process.
        NonFiniteError: the network returned NaN or infinity; the message names part and row.
    """
    for seed in seeds:
        generator_of(seed)
    if count is None and not plan.endless:
        count = len(plan) - first
    numbers = itertools.count(first) if count is None else range(first, first + count)
    if count is not None and count > 0:
        plan.entry(first + count - 1)  # refused now rather than after hours
    if process is None and any(entry.context_noise for entry in plan.entries):
        raise FewstepError("this plan noises what is shown, which needs the process", hint="Give `process`.")
    return _parts(plan, network, seeds, shape, axis, numbers, context, process, device, dtype)


def _parts(
    plan: NestedPlan,
    network: Bind,
    seeds: Sequence[int],
    shape: Sequence[int] | Callable[[int], Sequence[int]],
    axis: int,
    numbers: Iterator[int] | range,
    context: Tensor | None,
    process: Process | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    most = max(entry.overlap or 0 for entry in plan.entries)
    last = tail = context
    for k in numbers:
        entry, part_seeds = plan.entry(k), [seed_of_part(seed, k) for seed in seeds]
        size = list(shape(k) if callable(shape) else shape)
        if entry.length is not None:
            size[axis] = entry.length
        shown = _shown(entry, last, tail, axis)
        if shown is not None and entry.context_noise:
            assert process is not None
            shown = _noised(shown, entry.context_noise, process, [seed_of_part(s, k, "context") for s in seeds])
        bound = network(k, shown)
        try:
            last = sample(plan.plan(k), bound, seeds=part_seeds, shape=size, device=device, dtype=dtype)
        except NonFiniteError as error:
            raise NonFiniteError(f"{plan.index} {k}: {error}") from error
        if most:
            joined = last if tail is None else torch.cat([tail, last], axis + 1)
            tail = joined.narrow(axis + 1, max(0, joined.shape[axis + 1] - most), min(most, joined.shape[axis + 1]))
            tail = tail.clone()  # not a view, which would keep all that was joined
        yield last


def seed_of_part(seed: int, k: int, use: str = "") -> int:
    """The seed of part k of a sample: its own for part 0, further ones from a hash of both."""
    if k == 0 and not use:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{int(seed)} {k} {use}".encode(), digest_size=8).digest(), "big")


def _shown(entry: PlanEntry, last: Tensor | None, tail: Tensor | None, axis: int) -> Tensor | None:
    """What a part is shown of those before it; less than its overlap where there is not as much yet."""
    if entry.overlap is None:
        return last
    if entry.overlap == 0 or tail is None:
        return None
    size = tail.shape[axis + 1]
    return tail.narrow(axis + 1, max(0, size - entry.overlap), min(size, entry.overlap))


def _noised(shown: Tensor, time: float, process: Process, seeds: Sequence[int]) -> Tensor:
    noise = Noise(seeds).draw(shown.shape[1:]).to(shown)
    return process.add_noise(shown, noise, torch.full((len(shown),), time, dtype=torch.float64))
