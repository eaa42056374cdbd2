"""An own data set as the stream of batches that a distillation draws from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch
from fewstep.errors import FewstepError
from fewstep.transition import coarse_path, first_state

Batches = Callable[[torch.Generator], Batch]
Rows = Mapping[str, Tensor]
"""Tensors (N, ...) by the names of the network's keyword arguments."""


def batches_of(
    data: Any,
    *,
    size: int,
    shape: Sequence[int] = (),
    conditions: Rows | None = None,
    negative: Rows | None = None,
    device: torch.device | str = "cpu",
) -> Batches:
    """A stream of batches of `size` samples, for ever.

    Args:
        data: a tensor (N, ...) of which rows are drawn; pairs (tensor, {name: tensor}); any iterable of tensors
            (B, ...) or of such pairs, such as a DataLoader, which begins anew at its end; or None.
        size: samples per batch; of an iterable, its own sizes.
        shape: of one sample, where there are no data.
        conditions: keyword arguments of the network for the rows of a tensor, or to draw from where there are no data.
        negative: those of no condition, tensors with one row.
        device: where the network lies.

    Raises:
        FewstepError: data of another kind, or neither data nor a shape.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        data, conditions = data
    if data is None and not shape:
        raise FewstepError("without data the shape of a sample is not known", hint="Give data=, or shape=.")
    if data is None or isinstance(data, Tensor):
        return _rows(data, size, tuple(shape), conditions or {}, negative, device)
    if not isinstance(data, Iterable):
        hint = "Give a tensor (N, ...), an iterable of batches, or the name of a data set for a pipeline."
        raise FewstepError("data of an unknown kind", value=type(data).__name__, hint=hint)
    return _stream(data, negative, device)


def _rows(
    data: Tensor | None, size: int, shape: tuple[int, ...], conditions: Rows, negative: Rows | None, device: Any
) -> Batches:
    counts = {len(value) for value in conditions.values()} | (set() if data is None else {len(data)})
    if len(counts) > 1:
        raise FewstepError("samples and conditions differ in number", value=sorted(counts), hint="One row each.")
    count = counts.pop() if counts else 1

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(count, (size,), generator=generator)
        clean = None if data is None else data[rows].to(device)
        given = {name: value[rows].to(device) for name, value in conditions.items()} or None
        return _batch(clean, given, negative, size, shape if clean is None else tuple(clean.shape[1:]), device)

    return draw


def _stream(data: Iterable[Any], negative: Rows | None, device: Any) -> Batches:
    endless = _endless(data)

    def draw(generator: torch.Generator) -> Batch:
        item = next(endless)
        clean, given = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not isinstance(clean, Tensor) or not (given is None or isinstance(given, Mapping)):
            hint = "Each must be a tensor (B, ...), or a pair of it and {name: tensor}."
            raise FewstepError("a batch of an unknown kind", value=type(item).__name__, hint=hint)
        moved = None if given is None else {name: value.to(device) for name, value in given.items()}
        return _batch(clean.to(device), moved, negative, len(clean), tuple(clean.shape[1:]), device)

    return draw


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    for turn in itertools.count():
        found = False
        for item in data:
            found = True
            yield item
        if not found:
            hint = "An iterator is used up after one turn: give a list or a DataLoader." if turn else "It is empty."
            raise FewstepError("the data gave no batch", value=type(data).__name__, hint=hint)


def _batch(
    clean: Tensor | None, given: Rows | None, negative: Rows | None, size: int, shape: tuple[int, ...], device: Any
) -> Batch:
    without = {n: v.to(device).expand(size, *v.shape[1:]) for n, v in (negative or {}).items()} or None
    return Batch(size=size, shape=shape, clean=clean, condition=given, negative=without)


@torch.no_grad()
def with_trajectories(
    batches: Batches, teacher: Denoiser, *, count: int, states: int, between: int, seed: int, device: Any
) -> Batches:
    """Batches of the teacher's own trajectories, for methods that learn from them; conditions are those of `batches`.

    Args:
        batches: where shapes and conditions come from.
        teacher: followed by DDIM steps from noise to data.
        count: trajectories, at least one batch.
        states: kept of each besides the first.
        between: DDIM steps from one kept state to the next.
        seed: of noise and conditions.
        device: where the network lies.
    """
    generator, made = torch.Generator().manual_seed(seed), list[Batch]()
    while sum(batch.size for batch in made) < count:
        batch = batches(generator)
        noise = torch.randn(batch.size, *batch.shape, generator=generator).to(device)
        start = first_state(teacher.process, teacher.process.noisiest, noise)
        clean = lambda x, t, batch=batch: teacher(x, t, batch.condition)  # noqa: E731
        path, times = coarse_path(teacher.process, clean, start, states, between)
        made.append(replace(batch, path=path, times=times, clean=path[:, -1]))

    def draw(generator: torch.Generator) -> Batch:
        batch = made[int(torch.randint(len(made), (), generator=generator))]
        rows = torch.randint(batch.size, (batch.size,), generator=generator)
        given = None if batch.condition is None else {n: v[rows.to(v.device)] for n, v in batch.condition.items()}
        where = rows.to(device)
        assert batch.path is not None
        assert batch.clean is not None
        return replace(batch, path=batch.path[where], clean=batch.clean[where], condition=given)

    return draw
