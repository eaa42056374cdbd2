"""What a step of training is given: conditions alone, samples and trajectories of the teacher, or real pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Batch
from fewstep.distillation.store import TrajectoryStore
from fewstep.pipelines.encoded import EncodedConditions

Batches = Callable[[torch.Generator], Batch]


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Conditions at random, nothing else; `owned` are the numbers that may be drawn, all unless given."""

    encoded: EncodedConditions
    size: int
    device: torch.device
    owned: Tensor | None = None

    def __call__(self, generator: torch.Generator) -> Batch:
        """A batch."""
        count = max(1, self.encoded.count) if self.owned is None else len(self.owned)
        numbers = torch.randint(count, (self.size,), generator=generator)
        return self.of(numbers if self.owned is None else self.owned[numbers])

    def of(
        self, numbers: Tensor, clean: Tensor | None = None, path: Tensor | None = None, times: Tensor | None = None
    ) -> Batch:
        """A batch with these conditions."""
        condition, negative = self.encoded.pick(numbers)
        return Batch(
            size=self.size,
            shape=self.encoded.shape,
            clean=None if clean is None else clean.to(self.device),
            condition=condition,
            negative=negative,
            path=None if path is None else path.to(self.device),
            times=times,
            numbers=numbers,
        )


def from_store(given: Conditioned, store: TrajectoryStore) -> Batches:
    """Trajectories of the teacher; their ends are the data."""

    def batch(generator: torch.Generator) -> Batch:
        path, numbers = store.draw(given.size, generator)
        times = torch.tensor(store.header.times, dtype=torch.float64)
        return given.of(numbers.clamp(min=0), path[:, -1], path, times)

    return batch


def from_data(given: Conditioned, latents: Tensor, numbers: Tensor) -> Batches:
    """Latents (N, ...) with the numbers of their conditions (N,)."""

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(latents), (given.size,), generator=generator)
        return given.of(numbers[rows], latents[rows])

    return batch
