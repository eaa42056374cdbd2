"""The term of every trajectory method: the student's jump against a target, in a space, by a metric, with weights."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.distances import Metric, squared_error
from fewstep.distillation.flow_map.frame import BoundaryScaling, JumpCoefficients, Space, column
from fewstep.distillation.flow_map.guidance import TeacherGuidance
from fewstep.distillation.flow_map.intervals import JumpDistribution
from fewstep.distillation.flow_map.jump import Jump, JumpStates, students_view, teachers_view
from fewstep.distillation.flow_map.sources import StateSource, noised_data
from fewstep.distillation.flow_map.targets import JumpTarget
from fewstep.distillation.flow_map.weights import JumpWeight
from fewstep.distillation.part import part
from fewstep.errors import FewstepError


@part
def flow_map_term(
    times: JumpDistribution,
    target: JumpTarget,
    source: StateSource = noised_data,
    metric: Metric = squared_error(),
    weights: tuple[JumpWeight, ...] = (),
    space: Space = "velocity",
    guidance: TeacherGuidance = TeacherGuidance(),
    boundary: BoundaryScaling | None = None,
    normalise: float | None = None,
    carried: bool = False,
    share: tuple[float, float] = (0.0, 1.0),
    factor: float = 1.0,
) -> Term:
    """factor * mean over samples of weight(metric(student's jump, target)).

    Logged are the mean distance before weights, and the forward passes beside the student's own.

    Args:
        times: of the jumps.
        target: what they should give.
        source: where they start.
        metric: the distance of what they give and what they should.
        weights: what it is multiplied by, in turn.
        space: what it is a distance of.
        guidance: of the teacher, within this term.
        boundary: how a prediction becomes the end state; the step with it held fixed unless given.
        normalise: c: the residual g becomes g / (|g| + c) per sample (sCM, arXiv 2410.11081, sec. 4.1): it keeps the
            fixed point, which normalising the derivative alone does not.
        carried: compare after the target network has taken both ends to the data (CTM, arXiv 2310.02279, eq. 9); needs
            a target network that is a copy, as a gradient would reach a live one.
        share: the part of the batch that it sees, as fractions (several terms may divide a batch).
        factor: of the whole.
    """
    seen_in: Space = "state" if carried else space

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        batch, samples = portion(batch, samples, share)
        with torch.no_grad():
            blank = prepared(networks, batch, times, guidance, generator, boundary)
            check_end_times(networks.student, blank.s)
            jump = replace(blank, states=source(networks, batch, samples, blank, generator))
        live = jump.ask(networks.student, jump.x, jump.t, jump.s)
        with torch.no_grad():
            value, lives_in, passes = target(networks, jump, live.detach())
        given = jump.frame.express(live, jump.x, seen_in)
        wanted = jump.frame.transfer(value, live.detach(), jump.x, lives_in, seen_in)
        if carried:
            given, wanted = (carried_to_data(networks, jump, state) for state in (given, wanted))
        if normalise is not None:
            wanted = normalised_residual(given.detach(), wanted, normalise)
        distance = metric(given, wanted.detach())
        weighted = distance
        for weight in weights:
            weighted = weight(networks, jump, weighted)
        numbers = {"distance": distance.detach().mean(), "passes": torch.tensor(float(passes))}
        return factor * weighted.mean(), numbers

    return loss


def prepared(
    networks: Networks,
    batch: Batch,
    law: JumpDistribution,
    guidance: TeacherGuidance,
    generator: torch.Generator,
    boundary: BoundaryScaling | None = None,
) -> Jump:
    """The jumps of a batch without their states."""
    process = networks.student.process
    times = law(batch, process, generator)
    scale = guidance.draw(batch, process, times.t, generator)
    return Jump(
        states=JumpStates(torch.empty(0)),
        times=times,
        frame=JumpCoefficients.of(process, times.t, times.s, boundary),
        condition=guidance.conditioned(students_view(batch.condition), scale),
        teacher_condition=teachers_view(batch.condition),
        negative=teachers_view(batch.negative),
        scale=scale,
        seed=int(torch.randint(2**31, (1,), generator=generator)),
        step=batch.step,
        steps=batch.steps,
        boundary=boundary,
    )


def check_end_times(student: Denoiser, s: Tensor) -> None:
    """Refuse jumps to time 0 where the process has no network time for it (VE: log sigma).

    Raises:
        FewstepError: the student takes two times, and some jumps end at the data.
    """
    if student.two_times and not math.isfinite(student.process.network_time(0.0)) and bool((s == 0).any()):
        hint = "Use a process whose clock is finite at the data, or a method of one time."
        raise FewstepError(f"{type(student.process).__name__} has no network time for the data", value=0.0, hint=hint)


def normalised_residual(given: Tensor, wanted: Tensor, c: float) -> Tensor:
    """The target whose residual g has become g / (|g| + c), |g| the root of the sum of squares of a sample."""
    residual = given - wanted
    size = residual.flatten(1).norm(dim=1)
    return given - column(1 / (size + c), given) * residual


def carried_to_data(networks: Networks, jump: Jump, state: Tensor) -> Tensor:
    """Clean predictions of the target network for states (B, ...) at the ends of jumps; those at the data stay."""
    target = networks.need("target")
    if target is networks.student or target.network is networks.student.network:
        hint = "Give the method a target with a decay."
        raise FewstepError("carrying both ends to the data needs a target network of its own", hint=hint)
    there = jump.s == 0
    s = torch.where(there, jump.t, jump.s)
    clean = jump.ask(target, state, s, torch.zeros_like(s))
    return torch.where(column(there.double(), state) > 0, state, clean)


def portion(batch: Batch, samples: Samples | None, share: tuple[float, float]) -> tuple[Batch, Samples | None]:
    """The samples of a batch between two fractions of its size.

    Raises:
        FewstepError: none are left.
    """
    if share == (0.0, 1.0):
        return batch, samples
    low, high = (round(part * batch.size) for part in share)
    if not 0 <= low < high <= batch.size:
        hint = "Use a larger batch, or shares that rise within [0, 1]."
        raise FewstepError("no sample is left for a part of the batch", value=(share, batch.size), hint=hint)
    rows = torch.arange(low, high)
    return batch.rows(rows), None if samples is None else samples.rows(rows)
