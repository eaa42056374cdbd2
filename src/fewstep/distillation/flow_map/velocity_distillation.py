"""Velocity distillation: score distillation whose fake score is read off the student's own map (arXiv 2509.04406)."""

from __future__ import annotations

from dataclasses import replace

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.flow_map.continuous import ResidualFunction, eulerian_residual
from fewstep.distillation.flow_map.guidance import TeacherGuidance
from fewstep.distillation.flow_map.intervals import JumpDistribution
from fewstep.distillation.flow_map.jump import students_view
from fewstep.distillation.flow_map.sources import mixed_states, noisiest_state
from fewstep.distillation.flow_map.term import normalised_residual, prepared
from fewstep.distillation.part import part
from fewstep.distillation.rollout import unit_noise
from fewstep.transition import noise_like


@part
def velocity_distillation(
    times: JumpDistribution,
    residual: ResidualFunction = eulerian_residual(),
    guidance: TeacherGuidance = TeacherGuidance(),
    normalise: float | None = None,
    factor: float = 1.0,
) -> Term:
    """mean (x' - sg[x' + R])^2: its gradient on x' is -2 R / numbers, the sign of descent on the divergence.

    That is -(u_theta - v) dx'/dtheta on the student's samples x', noised to x'_t (eq. 12 there). u_theta - v, the
    velocity that the student's map implies minus the teacher's, is the Eulerian residual at s = 0; it equals the true
    gap of velocities carried to the data by the Jacobian of the student's map. x' is the roll-out's sample, or one jump
    from noise where the method has none.

    Args:
        times: where x' is compared; its jumps must end at the data.
        residual: R.
        guidance: of the teacher.
        normalise: c: R becomes R / (|R| + c) per sample, which keeps its direction and bounds a step.
        factor: of the whole.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        student, process = networks.student, networks.student.process
        if samples is None:
            noise = unit_noise(networks, batch, generator)
            top = torch.full((batch.size,), process.noisiest, dtype=torch.float64)
            condition = students_view(batch.condition)
            sample = student(noisiest_state(networks, noise), top, condition, torch.zeros_like(top))
        else:
            sample = samples.clean
        with torch.no_grad():
            blank = prepared(networks, batch, times, guidance, generator)
            fresh = noise_like(tuple(sample.shape), generator, sample)
            jump = replace(blank, states=mixed_states(networks, sample.detach(), fresh, blank.t))
            live = jump.ask(student, jump.x, jump.t, jump.s)
            gap, passes = residual(networks, jump, live)
            if normalise is not None:
                gap = -normalised_residual(torch.zeros_like(gap), -gap, normalise)
        value = (sample - (sample.detach() + gap)).square().mean()
        return factor * value, {"gap": gap.square().mean().sqrt(), "passes": torch.tensor(float(passes + 1))}

    return loss
