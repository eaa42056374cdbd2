"""How a few-step student is run: the times of its calls and what happens between them, as data and as a plan."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.distillation.core import Condition, Model, flow_step, noise_like, scales
from fewstep.errors import FewstepError
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import Process
from fewstep.solvers import grids
from fewstep.solvers.stages import Stages, Update, settled


@dataclass(frozen=True)
class Steps:
    """The calls of a student.

    times:
        Process times, noisiest first.
    fresh:
        The gamma of arXiv 2402.19159: from each call the student jumps to (1 - fresh) times the next time, and new
        noise takes it back up. 0 is a deterministic chain, 1 jumps to the data and noises anew.

    Raises:
        FewstepError: no times, times that do not fall, or `fresh` outside of [0, 1].
    """

    times: tuple[float, ...]
    fresh: float = 1.0

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in itertools.pairwise(self.times))
        if not self.times or not falling or self.times[-1] <= 0:
            raise FewstepError("the times of a student must fall and stay above 0", value=self.times)
        if not 0 <= self.fresh <= 1:
            raise FewstepError("fresh must lie between 0 and 1", value=self.fresh, hint="0: chain, 1: noise anew.")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def jumps(self) -> tuple[float, ...]:
        """Where each call's jump ends; 0, the data, for the last."""
        return (*((1 - self.fresh) * t for t in self.times[1:]), 0.0)

    def plan(self, process: Process, prediction: Prediction) -> Plan:
        """The plan that runs the student in any pipeline; carries no guidance, which is inside the student."""
        s = Stages(process, prediction, grids.given(self.times))
        updates: list[Update] = []
        for k, jump in enumerate(self.jumps):
            if k + 1 == len(s):
                updates.append((s.data(k), 0.0))
                continue
            alpha, sigma = _jump_scales(process, jump)
            kept, fresh = _renoise(alpha, sigma, s.alpha[k + 1], s.sigma[k + 1])
            mean = s.data(k) if jump == 0 else alpha * s.data(k) + sigma * s.noise(k)
            updates.append((settled(kept) * mean, settled(fresh)))
        return s.plan(updates, "student", fresh=self.fresh, jumps=list(self.jumps))

    def sample(self, student: Model, noise: Tensor, condition: Condition | None, generator: torch.Generator) -> Tensor:
        """Samples (B, ...) from unit noise (B, ...); fresh noise comes from the CPU generator."""
        process, size = student.process, len(noise)
        alpha, sigma = _at(process, self.times[0], noise)
        x = noise * (alpha**2 + sigma**2).sqrt() if float(alpha.flatten()[0]) != 1 else noise * sigma
        for k, jump in enumerate(self.jumps):
            t, to = (torch.full((size,), v, dtype=torch.float64) for v in (self.times[k], jump))
            clean = student.clean(x, t, condition, to)
            if k + 1 == len(self.times):
                return clean
            there = clean if jump == 0 else flow_step(process, x, clean, t, to)
            start = _jump_scales(process, jump)
            end = [torch.tensor(f(self.times[k + 1]), dtype=torch.float64) for f in (process.alpha, process.sigma)]
            kept, fresh = _renoise(*start, *end)
            x = float(kept) * there
            if self.fresh:
                x = x + float(fresh) * noise_like(tuple(x.shape), generator, x)
        return x


def evenly(process: Process, steps: int, fresh: float = 1.0) -> Steps:
    """Equal parts of the time axis from the noisiest time on (999, 749.25, 499.5, 249.75 of 1000 discrete times).

    On a process whose noise has no upper end (VE), equal parts of sigma^(1/7) as in arXiv 2206.00364.
    """
    if process.alpha(process.noisiest) == 1.0:
        least = 0.002 if steps > 1 else process.noisiest
        times = grids.karras(process, steps + 1, least).times[:-1] if steps > 1 else [process.noisiest]
    else:
        times = grids.uniform(process, steps).times
    return Steps(tuple(float(t) for t in times), fresh)


def _at(process: Process, t: float, like: Tensor) -> tuple[Tensor, Tensor]:
    return scales(process, torch.tensor([t], dtype=torch.float64), like)


def _jump_scales(process: Process, jump: float) -> tuple[Tensor, Tensor]:
    """Scales at the end of a jump; time 0 stands for the data itself, also where the process keeps some noise there."""
    pair = (1.0, 0.0) if jump == 0 else (process.alpha(jump), process.sigma(jump))
    return torch.tensor(pair[0], dtype=torch.float64), torch.tensor(pair[1], dtype=torch.float64)


def _renoise(alpha: Tensor, sigma: Tensor, to_alpha: Tensor, to_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Factor of the state and standard deviation of the noise that take scales (alpha, sigma) to the next ones."""
    kept = to_alpha / alpha
    return kept, (to_sigma**2 - (kept * sigma) ** 2).clamp(min=0).sqrt()
