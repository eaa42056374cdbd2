"""What a step of training is given: conditions alone, samples and trajectories of the teacher, or real pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.distillation.core import Batch
from fewstep.distillation.store import TrajectoryStore
from fewstep.pipelines.encoded import EncodedConditions

Batches = Callable[[torch.Generator], Batch]


def batch_of(
    encoded: EncodedConditions,
    numbers: Tensor,
    device: torch.device,
    clean: Tensor | None = None,
    path: Tensor | None = None,
    times: Tensor | None = None,
) -> Batch:
    """A batch with the conditions of these numbers (B,); `clean`, `path` and `times` as of a `Batch`."""
    condition, negative = encoded.pick(numbers)
    return Batch(
        size=len(numbers),
        shape=encoded.shape,
        clean=None if clean is None else clean.to(device),
        condition=condition,
        negative=negative,
        path=None if path is None else path.to(device),
        times=times,
        numbers=numbers,
    )


def from_conditions(
    encoded: EncodedConditions, size: int, device: torch.device, owned: Tensor | None = None
) -> Batches:
    """Conditions at random, nothing else; `owned` are the numbers that may be drawn, all unless given."""
    count = max(1, encoded.count) if owned is None else len(owned)

    def batch(generator: torch.Generator) -> Batch:
        numbers = torch.randint(count, (size,), generator=generator)
        return batch_of(encoded, numbers if owned is None else owned[numbers], device)

    return batch


def from_store(encoded: EncodedConditions, size: int, device: torch.device, store: TrajectoryStore) -> Batches:
    """Trajectories of the teacher; their ends are the data."""

    def batch(generator: torch.Generator) -> Batch:
        path, numbers = store.draw(size, generator)
        times = torch.tensor(store.header.times, dtype=torch.float64)
        return batch_of(encoded, numbers.clamp(min=0), device, path[:, -1], path, times)

    return batch


def from_data(encoded: EncodedConditions, size: int, device: torch.device, latents: Tensor, numbers: Tensor) -> Batches:
    """Latents (N, ...) with the numbers of their conditions (N,)."""

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(latents), (size,), generator=generator)
        return batch_of(encoded, numbers[rows], device, latents[rows])

    return batch
