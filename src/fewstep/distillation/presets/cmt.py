"""Consistency mid-training, and MeanFlow that begins with it."""

from __future__ import annotations

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TeacherGuidance,
    Term,
    TimeDerivative,
    VelocitySource,
    adaptive_weight,
    data_velocity,
    eulerian_target,
    evenly,
    flow_map_term,
    jump_times,
    needing,
    preset,
    second_draw,
    squared_error,
    stored_pairs,
    stored_state,
    stored_states,
    teacher_velocity,
    training_stages,
    two_leg,
    uniform_times,
)
from fewstep.process import Process


@preset("cmt")
def cmt(process: Process, *, steps: int = 1, pairs: str = "all") -> Method:
    """Consistency mid-training: plain regression of jumps between stored states of the teacher (arXiv 2509.24526).

        loss = E |u_{s,t}(x_t) - (x_t - x_s) / (t - s)|^2 on stored states x_t, x_s (written for the straight path)

    The times are the true ones of the store.

    Args:
        process: of the teacher.
        steps: calls of the student.
        pairs: `all` learns the flow map, `to-end` the consistency function.
    """
    return Method(
        {"stored": flow_map_term(stored_pairs(pairs), two_leg(stored_state), stored_states)},
        evenly(process, steps, fresh=0.0),
        needs=needing(store=True),
        two_times=pairs != "to-end",
        settings=OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.95)),
    )


@preset("mf_rae", staged=True)
def mf_rae(
    process: Process,
    *,
    steps: int = 1,
    guidance: float = 1.0,
    shift: float = 1.0,
    equal: float = 0.75,
    delta: float = 5e-3,
    stages: tuple[float, float] = (0.12, 0.95),
) -> Method:
    """MF-RAE: mid-training, MeanFlow with the teacher's velocity by differences, then with the data's (2511.13019).

        loss: `cmt`, then `mean_flow` with v the teacher's velocity, then with v = noise - data

    Args:
        process: of the teacher.
        steps: calls of the student.
        guidance: scale g of the teacher's guidance; 1: none.
        shift: of the times; sqrt(numbers per sample / 4096) in the paper.
        equal: share of samples with s = t.
        delta: width of the differences.
        stages: ends of the first two stages, as shares of the training.
    """
    law = uniform_times(1e-3, 0.999, shift)

    def mean_flow(direction: VelocitySource, scale: float) -> Term:
        return flow_map_term(
            jump_times(law, second_draw(law), equal=equal),
            eulerian_target(direction, TimeDerivative("difference", delta)),
            metric=squared_error(total=True),
            weights=(adaptive_weight(1.0, 1e-3),),
            guidance=TeacherGuidance(scale),
        )

    middle = flow_map_term(stored_pairs("all"), two_leg(stored_state), stored_states)
    turns = (
        (stages[0], middle),
        (stages[1], mean_flow(teacher_velocity, guidance)),
        (1.0, mean_flow(data_velocity, 1.0)),
    )
    return Method(
        {"mean_flow": training_stages(turns)},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, store=True, guided=guidance != 1),
        two_times=True,
        settings=OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.95), ema=0.9999),
    )
