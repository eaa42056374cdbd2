"""Velocity distillation: score distillation whose fake score is read off the student's own map (arXiv 2509.04406)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from fewstep.distillation.core import Batch, Loss, Networks, Samples
from fewstep.distillation.flow_map.continuous import Eulerian
from fewstep.distillation.flow_map.guidance import TeacherGuidance
from fewstep.distillation.flow_map.intervals import JumpDistribution
from fewstep.distillation.flow_map.jump import students_view
from fewstep.distillation.flow_map.sources import mixed_states, noisiest_state
from fewstep.distillation.flow_map.term import normalised_residual, prepared
from fewstep.distillation.rollout import unit_noise
from fewstep.transition import noise_like


@dataclass(frozen=True)
class VelocityDistillation:
    """Gradient -(u_theta - v) dx'/dtheta on the student's samples x', noised to x'_t (eq. 12 there).

    u_theta - v, the velocity that the student's map implies minus the teacher's, is the Eulerian residual at s = 0; it
    equals the true gap of velocities carried to the data by the Jacobian of the student's map. x' is the roll-out's
    sample, or one jump from noise where the method has none.

    times:
        Where x' is compared; its jumps must end at the data.
    normalise:
        c: R becomes R / (|R| + c) per sample, which keeps its direction and bounds a step.
    """

    times: JumpDistribution
    residual: Eulerian = field(default_factory=Eulerian)
    guidance: TeacherGuidance = field(default_factory=TeacherGuidance)
    normalise: float | None = None
    factor: float = 1.0

    def __call__(self, networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        """mean (x' - sg[x' + R])^2: its gradient on x' is -2 R / numbers, the sign of descent on the divergence."""
        student, process = networks.student, networks.student.process
        condition = students_view(batch.condition)
        if samples is None:
            noise = unit_noise(networks, batch, generator)
            top = torch.full((batch.size,), process.noisiest, dtype=torch.float64)
            sample = student(noisiest_state(networks, noise), top, condition, torch.zeros_like(top))
        else:
            sample = samples.clean
        with torch.no_grad():
            blank = prepared(networks, batch, self.times, self.guidance, generator)
            fresh = noise_like(tuple(sample.shape), generator, sample)
            jump = replace(blank, states=mixed_states(networks, sample.detach(), fresh, blank.t))
            live = jump.ask(student, jump.x, jump.t, jump.s)
            gap, passes = self.residual.residual(networks, jump, live)
            if self.normalise is not None:
                gap = -normalised_residual(torch.zeros_like(gap), -gap, self.normalise)
        loss = (sample - (sample.detach() + gap)).square().mean()
        return self.factor * loss, {"gap": gap.square().mean().sqrt(), "passes": torch.tensor(float(passes + 1))}
