"""Where the states come from that jumps start at: data, pairs, stored trajectories, the teacher, the student itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks, Samples
from fewstep.distillation.flow_map.frame import column, levels
from fewstep.distillation.flow_map.intervals import TimeGrid, before, uniform_grid
from fewstep.distillation.flow_map.jump import Jump, JumpStates, JumpTimes, students_view
from fewstep.distillation.flow_map.legs import ode_steps
from fewstep.distillation.flow_map.schedules import Varying, value_at
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.errors import FewstepError
from fewstep.transition import first_state, noise_like

StateSource = Callable[[Networks, Batch, Samples | None, Jump, torch.Generator], JumpStates]
"""(networks, batch, samples, jump without its states, generator) -> the states (B, ...) that the jumps start at."""


def noised_data(
    networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
) -> JumpStates:
    """Real data with fresh noise.

    Raises:
        FewstepError: the batch has no data.
    """
    if batch.clean is None:
        raise FewstepError("noised data needs data", hint="Give a data set, or use a source without data.")
    return mixed_states(networks, batch.clean, noise_like(tuple(batch.clean.shape), generator, batch.clean), blank.t)


def pure_noise(
    networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
) -> JumpStates:
    """Fresh noise; the jumps must start at the noisiest time."""
    noise = unit_noise(networks, batch, generator)
    return JumpStates(noisiest_state(networks, noise), noise=noise)


@part
def end_point_pairs(anneal: Varying = 0.0, symmetry: Callable[[Tensor], Tensor] | None = None) -> StateSource:
    """Stored pairs of noise and the teacher's sample, mixed at t: reflow.

    Args:
        anneal: beta: the noise becomes sqrt(1 - beta^2) noise + beta fresh; 1 is independent, 0 paired (SlimFlow, arXiv
            2407.12718, sec. 3.1).
        symmetry: (B, ...) -> (B, ...), applied to both ends of half of the pairs: right only where the teacher commutes
            with it.
    """

    def states(
        networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
    ) -> JumpStates:
        path = stored(batch)
        sigma = networks.student.process.sigma(float(batch.times[0]))  # type: ignore[index]
        noise, clean = path[:, 0] / sigma, path[:, -1]
        if symmetry is not None:
            flip = column((torch.rand(batch.size, generator=generator) < 0.5).double(), clean) > 0
            noise, clean = (torch.where(flip, symmetry(end), end) for end in (noise, clean))
        beta = value_at(anneal, batch)
        if beta > 0:
            fresh = noise_like(tuple(noise.shape), generator, noise)
            noise = (1 - beta**2) ** 0.5 * noise + beta * fresh
        mixed = mixed_states(networks, clean, noise, blank.t)
        return JumpStates(mixed.x, clean, noise, arrival=clean)

    return states


def stored_states(
    networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
) -> JumpStates:
    """States of stored trajectories, at the positions of the jumps' starts and ends.

    Raises:
        FewstepError: the batch has no trajectories, or the jumps are not between stored times.
    """
    path, start, stop = stored(batch), blank.times.start, blank.times.stop
    if start is None or stop is None:
        raise FewstepError("stored states need jumps between stored times", hint="Use stored_pairs.")
    rows = torch.arange(batch.size, device=path.device)
    begin, end = (path[rows, at.to(path.device)] for at in (start, stop))
    return JumpStates(begin, clean=path[:, -1], arrival=end)


@part
def teacher_states(steps: int = 8, order: int = 1) -> StateSource:
    """The teacher's own states, by guided steps from fresh noise down to t: no data, no mismatch (MLCM, 2406.05768).

    Args:
        steps: to the data; a state on the way takes its share of them, rounded up, in equal parts (algorithm 1 there).
        order: of the steps, as in `ode_steps`.
    """
    solver = ode_steps(order)

    def states(
        networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
    ) -> JumpStates:
        top = torch.full_like(blank.t, networks.teacher.process.noisiest)
        counts = (steps * (1 - blank.t / top)).floor() + 1
        length = (top - blank.t) / counts
        x = noisiest_state(networks, unit_noise(networks, batch, generator))
        for k in range(int(counts.max())):
            rows = (counts > k).nonzero().squeeze(1)
            start = (top - k * length)[rows]
            end = torch.where(counts == k + 1, blank.t, top - (k + 1) * length)[rows]
            there = rows.to(x.device)
            moved, _ = solver(networks, _teachers_rows(blank, there), x[there], start, end)
            x = x.index_put((there,), moved.to(x.dtype))
        return JumpStates(x)

    return states


def _teachers_rows(jump: Jump, rows: Tensor) -> Jump:
    """The jump of these rows (b,), as far as the teacher needs it."""
    own, negative = (
        None if given is None else {name: value[rows] for name, value in given.items()}
        for given in (jump.teacher_condition, jump.negative)
    )
    scale = None if jump.scale is None else jump.scale[rows.cpu()]
    return replace(jump, teacher_condition=own, negative=negative, scale=scale)


@part
def windowed_reflow(grid: TimeGrid = uniform_grid(4), steps: int = 8, order: int = 1) -> StateSource:
    """Reflow within windows of time, without a store (PeRFlow, arXiv 2405.07510).

    Data is noised to the upper edge of the window that t lies in and solved by the teacher to the lower one; the pair
    (data, noise) whose path joins the two states takes the place of the original: a straight line on the straight path.
    The jumps must end at the lower edge (`previous_grid_point` of the same grid).

    Args:
        grid: edges of the windows.
        steps: of the teacher across a window.
        order: of these steps, as in `ode_steps`.
    """
    solver = ode_steps(order, steps)

    def states(
        networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
    ) -> JumpStates:
        process = networks.student.process
        upper = before(grid(process, batch), blank.t, 0)
        start = noised_data(networks, batch, samples, replace(blank, times=JumpTimes(upper, blank.s)), generator).x
        end, _ = solver(networks, blank, start, upper, blank.s)
        (alpha, sigma), (alpha_end, sigma_end) = levels(process, upper), levels(process, blank.s)
        determinant = alpha_end * sigma - alpha * sigma_end
        clean = column(sigma / determinant, end) * end - column(sigma_end / determinant, end) * start
        noise = column(alpha_end / determinant, end) * start - column(alpha / determinant, end) * end
        return replace(mixed_states(networks, clean, noise, blank.t), arrival=end)

    return states


@part
def student_states(steps: Chain | None = None, same_noise: bool = False) -> StateSource:
    """Samples of the student, noised again: those of the method's roll-out, or of `steps` where there is none.

    Args:
        steps: of the student.
        same_noise: noise again with the noise that the sample began with (TLCM's algorithm 2); fresh noise otherwise.

    Raises:
        FewstepError: when called: there is neither a roll-out nor steps, or no noise to use again.
    """

    def states(
        networks: Networks, batch: Batch, samples: Samples | None, blank: Jump, generator: torch.Generator
    ) -> JumpStates:
        noise = unit_noise(networks, batch, generator)
        if samples is not None and not same_noise:
            return mixed_states(networks, samples.clean.detach(), noise, blank.t)
        if steps is None:
            hint = "Give the source the steps of the student."
            raise FewstepError("the student's own samples need a roll-out or steps", hint=hint)
        clean = steps.sample(networks.student, noise, students_view(batch.condition), generator)
        again = noise if same_noise else unit_noise(networks, batch, generator)
        return mixed_states(networks, clean, again, blank.t)

    return states


def mixed_states(networks: Networks, clean: Tensor, noise: Tensor, t: Tensor) -> JumpStates:
    """States alpha clean + sigma noise at times (B,)."""
    alpha, sigma = levels(networks.student.process, t)
    return JumpStates(column(alpha, clean) * clean + column(sigma, clean) * noise, clean, noise)


def noisiest_state(networks: Networks, noise: Tensor) -> Tensor:
    """States (B, ...) at the noisiest time, of unit noise, as samplers start."""
    process = networks.student.process
    return first_state(process, process.noisiest, noise)


def stored(batch: Batch) -> Tensor:
    """Stored states (B, K, ...).

    Raises:
        FewstepError: the batch has none.
    """
    if batch.path is None or batch.times is None:
        raise FewstepError("this source needs a trajectory store", hint="Make one of the teacher's trajectories.")
    return batch.path
