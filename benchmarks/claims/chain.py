"""Arms of more than one training, and a measurement of flows: how straight their paths are."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from claims.claim import Arm, Numbers
from fewstep.denoiser import Denoiser
from fewstep.distillation.method import Method
from fewstep.distillation.parts import training_stages
from fewstep.testing.digits import DigitBed, class_condition
from fewstep.transition import ddim_path


@dataclass(frozen=True)
class Chain(Arm):
    """Two trainings in a row: the student of `first` is the teacher and the start of this one.

    part: of all updates that the first one gets; what is stored between them is not among them.
    """

    first: Arm | None = None
    part: float = 0.5

    def passes(self, bed: DigitBed, batch: int, steps: int = 4) -> float:
        """Those of both, by their shares of the updates."""
        assert self.first is not None
        before = self.first.passes(bed, batch, steps)
        return self.part * before + (1 - self.part) * super().passes(self.first.bed(bed), batch, steps)

    def _trained(self, bed: DigitBed, method: Method, updates: int, batch: int, seed: int, **settings: Any) -> Denoiser:
        assert self.first is not None
        before = max(1, round(self.part * updates))
        samples = self.first.make(bed.process, before)
        found = self.first._trained(bed, samples, before, batch, seed, **settings)
        found.network.eval().requires_grad_(False)  # type: ignore[attr-defined]
        middle = dataclasses.replace(self.first.bed(bed), network=found.network)
        rest = max(1, updates - before)
        return super()._trained(middle, self.make(bed.process, rest), rest, batch, seed, **settings)


class Flow(Arm):
    """An arm whose student is a flow: its last draw also says how straight its paths are."""

    def measured(self, bed: DigitBed, student: Denoiser, method: Method, seed: int = 0) -> Numbers:
        """With `straightness` (0: straight) in the last draw."""
        found = super().measured(bed, student, method, seed)
        found[list(found)[-1]]["straightness"] = straightness(bed, student)
        return found


@torch.no_grad()
def straightness(bed: DigitBed, student: Denoiser, steps: int = 16) -> float:
    """Mean of |x_1 - x_0 - v(x_t, t)|^2 over paths of Euler's steps, per |x_1 - x_0|^2 (arXiv 2209.03003, eq. 6)."""
    labels = bed.asked()
    times = torch.linspace(bed.process.noisiest, 0, steps + 1, dtype=torch.float64)
    noise = torch.randn(len(labels), *bed.shape, generator=torch.Generator().manual_seed(7))
    states = list(ddim_path(bed.process, lambda x, t: student(x, t, class_condition(labels)), noise, times))
    whole = states[-1] - states[0]
    gaps = [(steps * (b - a) - whole).square().sum(1) for a, b in itertools.pairwise(states)]
    return float(torch.stack(gaps).mean() / whole.square().sum(1).mean())


def after(middle: Method, last: Method, share: float = 0.5) -> Method:
    """The last method, with the only term of another one in its place for the first share of the training."""
    (begin,), ((name, end),) = middle.terms.values(), last.terms.items()
    return dataclasses.replace(
        last, terms={name: training_stages(((share, begin), (1.0, end)))}, needs=middle.needs | last.needs
    )
