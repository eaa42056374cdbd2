"""Progressive distillation: the student learns two steps of its former self as one, and again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    TargetNetwork,
    TeacherGuidance,
    evenly,
    flow_map_term,
    fraction_of_jump,
    grid_jump_times,
    halving,
    needing,
    ode_steps,
    preset,
    previous_grid_point,
    snr_weight,
    switch,
    two_leg,
    uniform_grid,
)
from fewstep.errors import FewstepError
from fewstep.process import Process


def halvings(updates: int, options: Mapping[str, Any]) -> dict[str, int]:
    """Equal stages: one per halving, and one for the first number of steps."""
    stages = max(1, (options["start"] // options["steps"]).bit_length())
    return {"every": max(1, updates // stages)}


@preset("progressive", staged=True, lengths=halvings)
def progressive(
    process: Process,
    *,
    steps: int = 1,
    start: int = 8,
    every: int = 5000,
    guidance: float = 1.0,
    weight: str = "truncated",
) -> Method:
    """Progressive distillation: from `start` steps, halved after every `every` updates (arXiv 2202.00512).

        loss = E_t[w(snr_t) |D(x_t) - x0~|^2],  x0~ the prediction whose one step t -> s is two steps of the former self

    Guidance acts in the first stage and is inside the student from then on (arXiv 2210.03142). The training takes every
    * (1 + log2(start / steps)) updates.

    Args:
        process: of the teacher.
        steps: calls of the student.
        start: steps of the first student; over `steps` it must be a power of two.
        every: updates of a stage.
        guidance: scale g of the teacher's guidance; 1: none.
        weight: kind of `snr_weight`.

    Raises:
        FewstepError: halving `start` never leads to `steps`.
    """
    if start % steps or (start // steps) & (start // steps - 1):
        hint = "Use start = steps times a power of two."
        raise FewstepError("halving never leads from `start` to `steps`", value=(start, steps), hint=hint)
    stages = (start // steps).bit_length()
    grid = uniform_grid(halving(start, every, steps))
    own = ode_steps(who="target")
    term = flow_map_term(
        grid_jump_times(grid, previous_grid_point(grid), fraction_of_jump(0.5)),
        two_leg(own, own),
        weights=(snr_weight(weight),),
        space="clean",
        guidance=TeacherGuidance(switch(guidance, 1.0, every)),
    )
    return Method(
        {"halving": term},
        evenly(process, steps, fresh=0.0),
        target=TargetNetwork(every=every, until=every * (stages - 1)),
        needs=needing(data=True, guided=guidance != 1),
        settings=OptimizerSettings(learning_rate=1e-4),
        updates=every * stages,
    )
