"""Distillation along the difficulty of the condition rather than along time."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TeacherGuidance,
    evenly,
    flow_map_term,
    instantaneous_velocity,
    jump_times,
    needing,
    preset,
    snr_weight,
    teacher_velocity,
    uniform_times,
)
from fewstep.process import Process


@preset("yonos")
def yonos(process: Process, *, steps: int = 1, guidance: float = 1.0) -> Method:
    """Scale distillation: the teacher sees an easier condition at the same state and time (arXiv 2401.17258).

        loss = E_t[(snr_t + 1) |D(x_t, harder condition) - F^g(x_t, easier condition)|^2]

    Conditions named `teacher.NAME` go to the teacher alone, in place of the student's NAME: for super-resolution the
    picture of half the scale factor, both by one degradation. Repeat with the student as teacher for larger ones.

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
    """
    term = flow_map_term(
        jump_times(uniform_times(1e-3, 1.0), equal=1.0),
        instantaneous_velocity(teacher_velocity),
        weights=(snr_weight("plus_one"),),
        space="clean",
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"easier": term},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=5e-5),
    )
