"""Phased consistency: jumps to the edge of the own segment of the trajectory."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    Metric,
    OptimizerSettings,
    TeacherGuidance,
    evenly,
    flow_map_term,
    grid_jump_times,
    needing,
    noised_data,
    ode_steps,
    preset,
    previous_grid_point,
    pseudo_huber,
    squared_error,
    student_jump,
    student_states,
    teacher_states,
    training_stages,
    two_leg,
    uniform_grid,
)
from fewstep.process import Process


@preset("pcm")
def pcm(process: Process, *, steps: int = 4, guidance: float = 5.0, parts: int = 48, huber: float = 1e-3) -> Method:
    """Phased consistency model: as many segments as steps, sampled without fresh noise (arXiv 2405.18407).

        loss = huber(X_{e,t}(x_t) - sg X_{e,m}(Phi_{m,t}(x_t))),  e the lower edge of the segment of t

    Args:
        process: of the teacher.
        steps: calls of the student, and segments.
        guidance: scale g of the teacher's guidance; 1: none.
        parts: of the grid of the teacher's steps.
        huber: constant of the distance.
    """
    grid = uniform_grid(parts)
    term = flow_map_term(
        grid_jump_times(grid, previous_grid_point(uniform_grid(steps)), previous_grid_point(grid)),
        two_leg(ode_steps(), student_jump()),
        metric=pseudo_huber(huber, elementwise=True),
        space="state",
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"consistency": term},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-6),
    )


@preset("mlcm", staged=True)
def mlcm(
    process: Process,
    *,
    steps: int = 4,
    guidance: float = 8.0,
    segments: int = 8,
    parts: int = 48,
    sub_steps: int = 3,
    rollout: int = 4,
    first_stage: float = 12 / 14,
    second_rate: float = 0.1,
    metric: Metric = squared_error(),
    data: bool = False,
) -> Method:
    """Multistep latent consistency without data: segments on the teacher's states, then milestones (arXiv 2406.05768).

        loss = d(X_{e,t}(x_t), sg X_{e,m}(Phi_{m,t}(x_t))) in segments;
        then d(f(x_t), sg f(Phi^p_{m,t}(x_t))), p steps of the teacher to the next edge m

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        segments: of the trajectory.
        parts: of the grid of the teacher's steps within segments.
        sub_steps: DDIM steps of the teacher between milestones (p).
        rollout: steps of the student that make its own states (q).
        first_stage: share of the training within segments; 1 or 0 leaves a stage out. Within segments alone no jump to
            the data is learned, and the student is run as a deterministic chain.
        second_rate: learning rate between milestones, of that within segments.
        metric: the paper's is the distance of features of a latent perceptual network (`feature_distance`).
        data: noised data instead of the teacher's states, which the paper argues against.
    """
    fine, coarse, scale = uniform_grid(parts), uniform_grid(segments), TeacherGuidance(guidance)
    within = flow_map_term(
        grid_jump_times(fine, previous_grid_point(coarse), previous_grid_point(fine)),
        two_leg(ode_steps(), student_jump()),
        noised_data if data else teacher_states(segments),
        metric,
        space="state",
        guidance=scale,
    )
    between = flow_map_term(
        grid_jump_times(coarse, middle=previous_grid_point(coarse)),
        two_leg(ode_steps(steps=sub_steps), student_jump()),
        student_states(evenly(process, rollout)),
        metric,
        space="state",
        guidance=scale,
    )
    rates = ((first_stage, 1.0), (1.0, second_rate)) if 0 < first_stage < 1 else ()
    stages = ((first_stage, within),) * (first_stage > 0) + ((1.0, between),) * (first_stage < 1)
    return Method(
        {"consistency": training_stages(stages)},
        evenly(process, steps, fresh=float(first_stage < 1)),
        needs=needing(data=data, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-4, rates=rates),
    )
