"""Regression on a deterministic teacher in both directions: noise to data, and data to the noise that leads there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.distances import Metric, squared_error
from fewstep.distillation.flow_map.jump import students_view, teachers_view
from fewstep.distillation.flow_map.sources import noisiest_state
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.errors import FewstepError
from fewstep.transition import ddim_path


@part
def two_way_regression(
    times: tuple[float, ...], inverse: float = 1.0, data: float = 1.0, metric: Metric = squared_error()
) -> Term:
    """The three losses of SinSR (arXiv 2311.14760): f the student at the noisiest time, g the same at the cleanest.

        d(f(x_T), F(x_T)) + inverse d(g(F(x_T)), x_T) + data d(f(sg g(y)), y),

    F the teacher's DDIM along `times`, y data. g is what the network itself says, whatever its output means at other
    times: the student is never asked there again. The last loss lets real data in without a mismatch of pairs.

    Args:
        times: process times of the teacher's calls, noisiest first.
        inverse: weight of the way back.
        data: weight of the data that went back and forth; 0 trains without data.
        metric: d; the paper: mean squares.

    Raises:
        FewstepError: when called: a process without a finite network time for data, or no data in the batch.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        student, process = networks.student, networks.student.process
        if not math.isfinite(process.network_time(process.cleanest)):
            hint = "Use inverse=0 and data=0, or a process whose clock is finite there."
            raise FewstepError(f"{type(process).__name__} has no network time for the data", hint=hint)
        top, bottom = (torch.full((batch.size,), t).double() for t in (process.noisiest, process.cleanest))
        condition = students_view(batch.condition)
        state = noisiest_state(networks, unit_noise(networks, batch, generator))
        with torch.no_grad():
            end = deterministic_end(networks, batch, state, times)
        forth = metric(student(state, top, condition), end).mean()
        back = metric(student.raw(end, bottom, condition), state).mean()
        value, numbers = forth + inverse * back, {"forth": forth, "back": back}
        if data:
            if batch.clean is None:
                raise FewstepError("this term needs data", hint="Give a data set, or data=0.")
            with torch.no_grad():
                found = student.raw(batch.clean, bottom, condition)
            around = metric(student(found, top, condition), batch.clean).mean()
            value, numbers = value + data * around, {**numbers, "around": around}
        return value, {name: number.detach() for name, number in numbers.items()}

    return loss


def deterministic_end(networks: Networks, batch: Batch, state: Tensor, times: tuple[float, ...]) -> Tensor:
    """Where the teacher's DDIM along these times ends (B, ...): its clean prediction at the last of them."""
    condition = teachers_view(batch.condition)

    def clean(x: Tensor, t: Tensor) -> Tensor:
        return networks.teacher(x, t, condition)

    grid = torch.tensor(times, dtype=torch.float64)
    for x in ddim_path(networks.teacher.process, clean, state, grid):
        state = x
    return clean(state, grid[-1].expand(len(state)))
