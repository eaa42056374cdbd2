"""Shortcut models: one jump is two of half the length."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TargetNetwork,
    TeacherGuidance,
    data_velocity,
    dyadic_jumps,
    evenly,
    flow_map_term,
    instantaneous_velocity,
    jump_times,
    needing,
    preset,
    semigroup,
    teacher_velocity,
    uniform_times,
)
from fewstep.process import Process


@preset("shortcut")
def shortcut(
    process: Process,
    *,
    steps: int = 1,
    teacher: bool = True,
    guidance: float = 1.0,
    finest: int = 7,
    bootstrap: float = 0.25,
    decay: float = 0.999,
) -> Method:
    """Shortcut models: jumps of length 2^-k from two of half the length, anchored at velocities (arXiv 2410.12557).

        loss = |u_{s,t}(x_t) - sg (x_t - X'_{s,m}(X'_{m,t}(x_t))) / (t - s)|^2;  |u_{t,t} - v|^2
        m the midpoint of jumps, the second part at s = t

    Args:
        process: of the teacher.
        steps: calls of the student.
        teacher: anchor at the teacher's velocity; False: at the data's, as the paper trains.
        guidance: scale g of the teacher's guidance; 1: none.
        finest: jumps are 2^-k long with k below this.
        bootstrap: the part of the batch that learns jumps (1/8 there).
        decay: of the target network.
    """
    anchored = 1 - bootstrap
    return Method(
        {
            "velocity": flow_map_term(
                jump_times(uniform_times(1e-3, 1.0), equal=1.0),
                instantaneous_velocity(teacher_velocity if teacher else data_velocity),
                guidance=TeacherGuidance(guidance if teacher else 1.0),
                share=(0.0, anchored),
                factor=anchored,
            ),
            "jump": flow_map_term(dyadic_jumps(finest), semigroup(), share=(anchored, 1.0), factor=bootstrap),
        },
        evenly(process, steps, fresh=0.0),
        target=TargetNetwork(decay),
        needs=needing(data=True, guided=guidance != 1),
        two_times=True,
        settings=OptimizerSettings(learning_rate=1e-4, weight_decay=0.1),
    )
