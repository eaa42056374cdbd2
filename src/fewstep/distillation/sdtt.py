"""SDTT: a masked model learns in one step what its teacher says over several (arXiv 2410.21035)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.discrete import TokenDenoiser, token_transition
from fewstep.distillation.core import Loss
from fewstep.distillation.engine import Turn
from fewstep.errors import FewstepError


@dataclass(frozen=True)
class SelfDistillation:
    """The method's settings.

    Attributes:
        steps: of the student's sampler in each round, falling; a round's student is the next one's teacher.
        substeps: of the teacher within one step of the student.
        divergence: `kl`, of the teacher's law from the student's, whose optimum is the mean of the teacher's laws; or
            `reverse`, whose optimum is their geometric mean, which is sharper.

    Raises:
        FewstepError: no rounds, one substep, or an unknown divergence.
    """

    steps: tuple[int, ...] = (32, 16, 8)
    substeps: int = 2
    divergence: Literal["kl", "reverse"] = "kl"

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or self.substeps < 2:
            hint = "steps=(32, 16, 8), substeps=2"
            raise FewstepError("rounds and substeps are too few", value=(self.steps, self.substeps), hint=hint)
        if self.divergence not in ("kl", "reverse"):
            raise FewstepError("unknown divergence", value=self.divergence, hint="kl or reverse")


@torch.no_grad()
def targets_over_steps(
    teacher: TokenDenoiser, z: Tensor, t: Tensor, s: Tensor, substeps: int, generator: torch.Generator
) -> Tensor:
    """What the teacher said of each token when it revealed it between t and s (B,), or last: log p (B, L, V).

    If the teacher's laws are the exact conditionals, their mean over its draws is its law at t: with forward KL there
    is then nothing to learn, and a student gains by what the teacher's errors and the sharpening leave.
    """
    process, found = teacher.process, teacher(z)
    for k in range(substeps):
        law = found if k == 0 else teacher(z)
        found = torch.where((z == process.mask)[..., None], law, found)
        before, after = (t + (s - t) * share / substeps for share in (k, k + 1))
        z = token_transition(process, z, law, before, after).draw(torch.rand(z.shape, generator=generator).to(z.device))
    return found


@dataclass(eq=False)
class SelfDistillationEngine:
    """SDTT with its networks and its stream of data; what a training asks for the updates of a step.

    Attributes:
        method: the settings.
        student: is trained; begins as the teacher.
        teacher: frozen within a round.
        modules: `student`.
        teacher_module: the teacher's network, which takes the student's weights after each round.
        batches: real tokens (B, L) from a step's generator.
    """

    method: SelfDistillation
    student: TokenDenoiser
    teacher: TokenDenoiser
    modules: Mapping[str, nn.Module]
    teacher_module: nn.Module
    batches: Callable[[torch.Generator], Tensor]

    def turns(self, step: int, steps: int, generator: torch.Generator) -> Iterator[Turn]:
        """The student's update; at the beginning of a round the teacher is renewed first."""
        rounds = len(self.method.steps)
        turn = min(step * rounds // steps, rounds - 1)
        if step and turn > (step - 1) * rounds // steps:
            self.teacher_module.load_state_dict(self.modules["student"].state_dict())

        def student() -> Loss:
            return self.student_loss(self.batches(generator), self.method.steps[turn], generator)

        yield ("student",), student

    def student_loss(self, real: Tensor, steps: int, generator: torch.Generator) -> Loss:
        """The divergence at masked positions of real tokens, noised to a time of the student's grid."""
        process = self.student.process
        t = torch.randint(1, steps + 1, (len(real),), generator=generator).double() / steps
        s = (t - 1 / steps).clamp(min=0)
        t, s = t.to(real.device), s.to(real.device)
        z = process.add_noise(real, t, torch.rand(real.shape, generator=generator).to(real.device))
        target = targets_over_steps(self.teacher, z, t, s, self.method.substeps, generator).clamp(min=-1e4)
        own, masked = self.student(z).clamp(min=-1e4), z == process.mask
        of, other = (target, own) if self.method.divergence == "kl" else (own, target)
        each = (of.exp() * (of - other)).sum(2)
        value = (each * masked).sum() / masked.sum().clamp(min=1)
        return value, {"divergence": value.detach()}
