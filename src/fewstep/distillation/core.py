"""What every objective consists of: networks, batch, the student's samples, and what a term of a loss is.

Nothing here trains. A term is a stateless function from the networks, a batch and the student's own samples to a loss;
the trainer owns modules, optimizers and the order of updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Condition, Denoiser
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class Networks:
    """The networks of a training; only the terms that need one ask for it.

    Attributes:
        student: what is trained.
        teacher: what it learns from.
        critic: follows the student's distribution.
        target: the slow student.
        adversary: the discriminator.
        reference: the student as it began, which alignment measures its changes against; with LoRA the base itself.
        reward: (samples (B, ...), batch) -> (B,), higher is better.
    """

    student: Denoiser
    teacher: Denoiser
    critic: Denoiser | None = None
    target: Denoiser | None = None
    adversary: nn.Module | None = None
    reference: Denoiser | None = None
    reward: SampleReward | None = None

    def following(self, call: Tensor) -> Networks:
        """The networks whose critic knows which call of the student (B,) its states come from."""
        return self if self.critic is None else replace(self, critic=self.critic.following(call))

    def need(self, name: str) -> Any:
        """A member, or a clear error.

        Args:
            name: of the member.

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

    Attributes:
        size: number of samples.
        shape: of one sample.
        clean: real data (B, ...), or its latents; None for methods that need no data.
        condition: keyword arguments of the networks.
        negative: those of no condition (for guidance).
        path: states (B, K, ...) of the teacher on the way from noise to data, from a trajectory store.
        times: their process times (K,), noisiest first.
        rejected: what was liked less than `clean` under the same condition (B, ...), for pairs of preferences.
        numbers: which conditions these are (B,), for rewards that read prompts.
        step: which step this is: for schedules (warm-ups, shrinking intervals).
        steps: of how many.
    """

    size: int
    shape: tuple[int, ...]
    clean: Tensor | None = None
    condition: Condition | None = None
    negative: Condition | None = None
    path: Tensor | None = None
    times: Tensor | None = None
    rejected: Tensor | None = None
    numbers: Tensor | None = None
    step: int = 0
    steps: int = 1

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1)."""
        return self.step / max(1, self.steps)

    def rows(self, rows: Tensor) -> Batch:
        """The batch of these rows (b,) alone."""

        def part(condition: Condition | None) -> Condition | None:
            return None if condition is None else {name: value[rows] for name, value in condition.items()}

        return replace(
            self,
            size=len(rows),
            clean=None if self.clean is None else self.clean[rows],
            condition=part(self.condition),
            negative=part(self.negative),
            path=None if self.path is None else self.path[rows],
            rejected=None if self.rejected is None else self.rejected[rows],
            numbers=None if self.numbers is None else self.numbers[rows],
        )

    def repeated(self, count: int) -> Batch:
        """The batch so many times over, one whole copy after the other."""
        return self.rows(torch.arange(self.size).repeat(count))


SampleReward = Callable[[Tensor, Batch], Tensor]
"""(clean samples (B, ...), the batch that they were drawn for) -> (B,), higher is better."""


@dataclass(frozen=True)
class Samples:
    """Samples of the student, from a roll-out.

    Attributes:
        clean: the student's clean prediction (B, ...); carries its gradient where the caller asked for one.
        state: what the student saw in its last call (B, ...).
        time: when (B,).
        next_time: time (B,) of the next call, 0 after the last.
        index: which of the student's calls it was (B,), 0 for the noisiest.
    """

    clean: Tensor
    state: Tensor
    time: Tensor
    next_time: Tensor
    index: Tensor

    def rows(self, rows: Tensor) -> Samples:
        """These rows (b,) alone."""
        return Samples(*(getattr(self, f.name)[rows] for f in fields(self)))


Loss = tuple[Tensor, dict[str, Tensor]]
"""A scalar with its gradient, and detached scalars to log."""


Term = Callable[[Networks, Batch, Samples | None, torch.Generator], Loss]
"""(networks, batch, samples of this step's roll-out if there is one, CPU generator of all its randomness) -> one
summand of a network's loss."""

Rollout = Callable[[Networks, Batch, torch.Generator], Samples]
"""(networks, batch, generator) -> the student's samples that the terms look at; gradients flow where enabled."""
