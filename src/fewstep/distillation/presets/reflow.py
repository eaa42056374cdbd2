"""Straight lines between the teacher's noise and its samples: reflow, InstaFlow's distillation, SlimFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fewstep.distillation.parts import (
    Method,
    Metric,
    OptimizerSettings,
    TargetNetwork,
    TeacherGuidance,
    data_velocity,
    end_point_pairs,
    evenly,
    flow_map_term,
    instantaneous_velocity,
    jump_times,
    needing,
    ode_steps,
    preset,
    previous_grid_point,
    pure_noise,
    ramp,
    random_middle,
    squared_error,
    stored_pairs,
    stored_state,
    stored_states,
    student_jump,
    summed_terms,
    training_stages,
    two_leg,
    uniform_grid,
    uniform_times,
    windowed_reflow,
)
from fewstep.process import Process

EVERYWHERE = jump_times(uniform_times(1e-3, 1.0), equal=1.0)
AVERAGE = 0.9999


@preset("reflow")
def reflow(process: Process, *, steps: int = 2, anneal: float = 0.0) -> Method:
    """Reflow: flow matching between the paired ends of stored trajectories (arXiv 2209.03003; InstaFlow 2309.06380).

        loss = E_t |u(x_t, t) - (z - y)|^2,  x_t = (1 - t) y + t z,  (z, y): the teacher's noise and its sample

    Args:
        process: of the teacher.
        steps: calls of the student.
        anneal: share of the training over which the pairs are loosened (SlimFlow); 0 is plain reflow.
    """
    beta = ramp(1.0, 0.0, last=anneal) if anneal else 0.0
    return Method(
        {"reflow": flow_map_term(EVERYWHERE, instantaneous_velocity(data_velocity), end_point_pairs(beta))},
        evenly(process, steps, fresh=0.0),
        needs=needing(store=True),
        settings=OptimizerSettings(learning_rate=1e-6, warmup=1000, ema=AVERAGE),
    )


@preset("perflow")
def perflow(process: Process, *, steps: int = 4, guidance: float = 1.0, sub_steps: int = 8, order: int = 1) -> Method:
    """PeRFlow: reflow within as many windows of time as steps, solved while training (arXiv 2405.07510).

        loss = E_t |u(x_t, t) - (x_b - x_a) / (t_b - t_a)|^2,  x_a solved by the teacher from x_b across the window

    Args:
        process: of the teacher.
        steps: calls of the student, and windows.
        guidance: scale g of the teacher's guidance; 1: none.
        sub_steps: of the teacher's solver across a window.
        order: of these steps.
    """
    windows = uniform_grid(steps)
    term = flow_map_term(
        jump_times(uniform_times(1e-3, 1.0), previous_grid_point(windows)),
        instantaneous_velocity(data_velocity),
        windowed_reflow(windows, sub_steps, order),
        guidance=TeacherGuidance(guidance),
    )
    return Method(
        {"reflow": term},
        evenly(process, steps, fresh=0.0),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=8e-5),
    )


@preset("instaflow")
def instaflow(process: Process, *, metric: Metric = squared_error()) -> Method:
    """InstaFlow's last stage: one step to the stored end of a straightened flow (arXiv 2309.06380).

        loss = d(z - u(z, 1), y),  (z, y): noise and sample of the straightened flow

    Run `reflow` first, store trajectories of its student, and distil that student on them.

    Args:
        process: of the teacher.
        metric: d; the paper: L2, then LPIPS.
    """
    return Method(
        {"end": flow_map_term(stored_pairs("whole"), two_leg(stored_state), stored_states, metric, space="state")},
        evenly(process, 1, fresh=0.0),
        needs=needing(store=True),
        settings=OptimizerSettings(learning_rate=1e-6, warmup=1000, ema=AVERAGE),
    )


def two_to_one(updates: int, options: Mapping[str, Any]) -> dict[str, int]:
    """Two thirds reflow, one third distillation, as published."""
    first = max(1, updates * 2 // 3)
    return {"reflow_steps": first, "distil_steps": max(1, updates - first)}


@preset("slim_flow", staged=True, lengths=two_to_one)
def slim_flow(
    process: Process,
    *,
    reflow_steps: int = 800_000,
    distil_steps: int = 400_000,
    metric: Metric = squared_error(),
    symmetry: Callable[[Tensor], Tensor] | None = None,
    anneal: float = 0.375,
    two_steps: float = 1.0,
) -> Method:
    """SlimFlow: annealed reflow, then one step from exact pairs and from two steps of its own flow (arXiv 2407.12718).

        loss = reflow with z = sqrt(1 - beta^2) z + beta fresh, beta -> 0;
        then |x(z) - y|^2 + two_steps |x(z) - sg x_two_steps(z)|^2

    For a student smaller than its teacher. The training must take reflow_steps + distil_steps updates.

    Args:
        process: of the teacher.
        reflow_steps: updates of the reflow; 0 where the teacher is the straightened flow already.
        distil_steps: updates of the distillation.
        metric: distance of the distillation.
        symmetry: of the teacher, such as a flip of pictures, applied to both ends of half of the pairs.
        anneal: share of the reflow over which pairs are loosened; 0 pairs them from the start.
        two_steps: weight of the student's own flow, which is the reflow's averaged student; 0 leaves it out.
    """
    share = reflow_steps / (reflow_steps + distil_steps)
    beta = ramp(1.0, 0.0, last=anneal * share) if anneal else 0.0
    straighten = flow_map_term(EVERYWHERE, instantaneous_velocity(data_velocity), end_point_pairs(beta, symmetry))
    pairs = flow_map_term(stored_pairs("whole"), two_leg(stored_state), stored_states, metric, space="state")
    flow = two_leg(student_jump("student"), ode_steps(who="target" if reflow_steps else "teacher"))
    own = flow_map_term(random_middle(0.2, 0.8), flow, pure_noise, metric, space="state", factor=two_steps)
    distil = summed_terms(pairs, own, "two_steps") if two_steps else pairs
    return Method(
        {"slim_flow": training_stages((*((share, straighten),) * (reflow_steps > 0), (1.0, distil)))},
        evenly(process, 1, fresh=0.0),
        target=TargetNetwork(AVERAGE, until=reflow_steps, warm=True) if reflow_steps else None,
        needs=needing(store=True),
        settings=OptimizerSettings(learning_rate=2e-4, betas=(0.9, 0.999), warmup=5000, ema=AVERAGE),
        updates=reflow_steps + distil_steps,
    )
