"""Latent consistency distillation, and discrete consistency distillation and training."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TargetNetwork,
    TeacherGuidance,
    evenly,
    flow_map_term,
    grid_jump_times,
    inverse_step,
    jump_times,
    karras_grid,
    lcm_boundary,
    log_normal_times,
    needing,
    ode_steps,
    preset,
    previous_grid_point,
    pseudo_huber,
    same_noise_step,
    shrinking_step,
    sinusoid,
    student_jump,
    two_leg,
    uniform_grid,
)
from fewstep.process import Process

LONG_CLOCK = 100.0
"""The boundary of LCM counts network time in training steps; networks with shorter clocks do without it."""


@preset("lcm")
def lcm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    highest: float | None = None,
    told: str | None = None,
    parts: int = 50,
    decay: float = 0.95,
    huber: float = 1e-3,
) -> Method:
    """Latent consistency distillation: jumps to the data agree after one guided DDIM step (arXiv 2310.04378).

        loss = huber(f(x_t, t) - sg f'(Phi_{m,t}(x_t), m)),  f = c_skip x + c_out D,  Phi a DDIM step with guidance

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        highest: draw guidance between `guidance` and this.
        told: name of the condition that the student is given its guidance as (`timestep_cond` in diffusers).
        parts: of the grid of the teacher's steps.
        decay: of the target network.
        huber: constant of the distance.
    """
    grid = uniform_grid(parts)
    with_boundary = process.network_time(process.noisiest) >= LONG_CLOCK
    term = flow_map_term(
        grid_jump_times(grid, middle=previous_grid_point(grid)),
        two_leg(ode_steps(), student_jump()),
        metric=pseudo_huber(huber, elementwise=True),
        space="state",
        guidance=TeacherGuidance(guidance, highest, key=told, embed=sinusoid() if told else None),
        boundary=lcm_boundary if with_boundary else None,
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        target=TargetNetwork(decay),
        needs=needing(data=True, guided=guidance != 1 or bool(highest)),
        settings=OptimizerSettings(learning_rate=1e-5, weight_decay=1e-2),
    )


@preset("consistency_distillation")
def consistency_distillation(
    process: Process, *, steps: int = 2, guidance: float = 1.0, parts: int = 18, order: int = 2, decay: float = 0.95
) -> Method:
    """Consistency distillation on EDM's grid: a second-order step of the teacher, then the student (2303.01469).

        loss = |f(x_t, t) - sg f'(Phi_{m,t}(x_t), m)|^2,  Phi one Heun step of the teacher

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        parts: of EDM's grid.
        order: of the teacher's steps.
        decay: of the target network.
    """
    grid = karras_grid(parts)
    term = flow_map_term(
        grid_jump_times(grid, middle=previous_grid_point(grid)),
        two_leg(ode_steps(order), student_jump()),
        space="state",
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps),
        target=TargetNetwork(decay),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=8e-6),
    )


@preset("ect")
def ect(process: Process, *, steps: int = 2, q: float = 2.0, stages: int = 8, c: float = 0.0) -> Method:
    """Easy consistency tuning: no teacher calls, the first leg shrinks as training goes on (arXiv 2406.14548).

        loss = d(f(x_t, t), sg f(x_r, r)) / (t - r),  x_t and x_r of one data point and one noise

    Args:
        process: of the teacher.
        steps: calls of the student.
        q: how fast the first leg shrinks from stage to stage.
        stages: of equal length.
        c: constant of the distance; 0: the distance itself.
    """
    term = flow_map_term(
        jump_times(log_normal_times(-1.1, 2.0), middle=shrinking_step(q, stages)),
        two_leg(same_noise_step, student_jump()),
        metric=pseudo_huber(c),
        weights=(inverse_step,),
        space="state",
    )
    return Method({"consistency": term}, evenly(process, steps), needs=needing(data=True))
