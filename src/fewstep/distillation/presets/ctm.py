"""Consistency trajectory models, and trajectory consistency distillation."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TargetNetwork,
    TeacherGuidance,
    data_velocity,
    evenly,
    flow_map_term,
    grid_jump_times,
    instantaneous_velocity,
    jump_times,
    karras_grid,
    log_normal_times,
    needing,
    ode_steps,
    preset,
    previous_grid_point,
    pseudo_huber,
    student_jump,
    two_leg,
    uniform_below,
    uniform_grid,
)
from fewstep.process import Process


@preset("ctm")
def ctm(
    process: Process,
    *,
    steps: int = 2,
    guidance: float = 1.0,
    parts: int = 18,
    skip: int = 4,
    order: int = 2,
    decay: float = 0.999,
    anchor: float = 1.0,
) -> Method:
    """Consistency trajectory model: jumps to any time, compared at the data, beside denoising (arXiv 2310.02279).

        loss = |X'_{0,s}(X_{s,t}(x_t)) - sg X'_{0,s}(X'_{s,m}(Phi_{m,t}(x_t)))|^2 + anchor |D(x_t) - x0|^2

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        parts: of EDM's grid.
        skip: grid points that the teacher's leg crosses, one step each; the paper draws it.
        order: of the teacher's steps.
        decay: of the target network.
        anchor: weight of the denoising.
    """
    grid = karras_grid(parts)
    return Method(
        {
            "consistency": flow_map_term(
                grid_jump_times(grid, uniform_below(), previous_grid_point(grid, skip)),
                two_leg(ode_steps(order, skip), student_jump()),
                guidance=TeacherGuidance(guidance),
                carried=True,
            ),
            "denoising": flow_map_term(
                jump_times(log_normal_times(-1.2, 1.2), equal=1.0),
                instantaneous_velocity(data_velocity),
                space="clean",
                factor=anchor,
            ),
        },
        evenly(process, steps, fresh=0.0),
        target=TargetNetwork(decay),
        needs=needing(data=True, guided=guidance != 1),
        two_times=True,
        settings=OptimizerSettings(learning_rate=8e-6),
    )


@preset("tcd")
def tcd(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    gamma: float = 0.3,
    parts: int = 50,
    decay: float = 0.95,
    huber: float = 1e-3,
) -> Method:
    """Trajectory consistency distillation: jumps to any time by a network of one time (arXiv 2402.19159).

        loss = huber(X_{s,t}(x_t) - sg X'_{s,m}(Phi_{m,t}(x_t))),  Phi one DDIM step with guidance, s uniform below t

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        gamma: share of the way below the next time that a call jumps, to be noised again.
        parts: of the grid of the teacher's steps.
        decay: of the target network.
        huber: constant of the distance.
    """
    grid = uniform_grid(parts)
    term = flow_map_term(
        grid_jump_times(grid, uniform_below(), previous_grid_point(grid)),
        two_leg(ode_steps(), student_jump()),
        metric=pseudo_huber(huber, elementwise=True),
        space="state",
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps, fresh=gamma),
        target=TargetNetwork(decay),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-5),
    )
