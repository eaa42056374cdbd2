"""Multi-student distillation: each student owns a part of the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from claims.claim import Arm, Claim, Question
from fewstep.denoiser import Denoiser
from fewstep.distillation.method import Method, method
from fewstep.testing.digits import CLASSES, DigitBed, DigitNetwork
from fewstep.testing.fit import fit_network

PARTS = ((0, 1, 2), (3, 4), (5, 6, 7), (8, 9))
SMALL, WARM = 60, 1500
"""Width of which four networks have together the weights of one of width 128; updates of its warm start."""


class Routed(nn.Module):
    """Students behind one call: each sample goes to the one that owns its class."""

    def __init__(self, students: Sequence[nn.Module], parts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.owner = {c: k for k, part in enumerate(parts) for c in part}

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        """Raw output (B, 64)."""
        owner = torch.tensor([self.owner[int(c)] for c in class_labels])
        out = torch.empty_like(x)
        for k, student in enumerate(self.students):
            rows = owner == k
            out[rows] = student(x[rows], time[rows], class_labels=class_labels[rows])
        return out


@dataclass(frozen=True)
class Students(Arm):
    """Students on parts of the classes, one after the other; a small one begins as a regression of the teacher."""

    parts: tuple[tuple[int, ...], ...] = (tuple(range(CLASSES)),)

    def passes(self, bed: DigitBed, batch: int, steps: int = 4) -> float:
        """Of one update of every student."""
        return len(self.parts) * super().passes(bed, batch, steps)

    def _trained(self, bed: DigitBed, method: Method, updates: int, batch: int, seed: int, **settings: Any) -> Denoiser:
        """All students behind one network."""
        beds = [dataclasses.replace(bed, classes=part) for part in self.parts]
        students = [super(Students, self)._trained(b, method, updates, batch, seed, **settings) for b in beds]
        return bed.model(Routed([s.network for s in students], self.parts))  # type: ignore[misc]

    def _student(self, bed: DigitBed, seed: int) -> nn.Module | None:
        if not self.width:
            return None
        small = bed.fresh(self.width)
        small.load_state_dict(warmed(bed.network, self.width).state_dict())
        return small


@lru_cache(maxsize=1)
def warmed(teacher: DigitNetwork, width: int) -> DigitNetwork:
    """A network of another width that denoises as the teacher (TSM, stage 0): clean predictions at uniform times."""
    from fewstep.testing.kernel_digits import load_digits

    bed = DigitBed(load_digits(), teacher, judge=None)  # type: ignore[arg-type]
    network, batches = bed.fresh(width), bed.batches(256)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        batch = batches(generator)
        assert batch.clean is not None
        assert batch.condition is not None
        t = torch.rand(batch.size, generator=generator)
        x = (1 - t[:, None]) * batch.clean + t[:, None] * torch.randn(batch.clean.shape, generator=generator)
        with torch.no_grad():
            wanted = teacher(x, 1000 * t, **batch.condition)
        return (network(x, 1000 * t, **batch.condition) - wanted).square().mean()

    fit_network(network, loss, WARM, rate=2e-3)
    return network


def matching(process: Any, updates: int) -> Method:
    """The distiller of every arm: DMD2 in one step without data."""
    return method("dmd2", process, steps=1, ratio=2, guidance=1.0, adversarial=0.0, floor=0.1)


CLAIM = Claim(
    paper="Multi-student Diffusion Distillation for Better One-step Generators (arXiv 2410.23274)",
    says="Four students, each for a part of the classes, beat one of the same size; smaller ones can replace it.",
    asks="One step. At equal updates each of four students gets those of the one, as in the paper; at equal passes, "
    "the control that the paper lacks, the one gets as many as all four. Four of width 60 have together the weights of "
    "one of 128 and begin, like every small student here, as a regression of the teacher that is outside the budget.",
    arms={
        "one": Students(matching),
        "four": Students(matching, parts=PARTS),
        "one small": Students(matching, width=SMALL),
        "four small": Students(matching, width=SMALL, parts=PARTS),
    },
    premises={"the small width binds": Question("one", "one small")},
    questions=(
        Question("four", "one"),
        Question("four small", "one small", premise="the small width binds"),
        Question("four small", "one", premise="the small width binds"),
    ),
)
